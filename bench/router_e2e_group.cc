#include "bench/router_e2e_group.h"

#include <atomic>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/check.h"

namespace bough {
namespace {

namespace link = ::bough::group::v1;

constexpr absl::Duration kLoadInterval = absl::Milliseconds(10);
constexpr int kTotalBlocks = 1 << 22;  // never full: eviction is not what is measured
constexpr char kModelKey[] = "bench";

void AppendHash(const BlockHash& hash, std::string* bytes) {
  for (uint64_t word : {hash.lo, hash.hi}) {
    for (int i = 0; i < 8; ++i) bytes->push_back(static_cast<char>(word >> (8 * i)));
  }
}

// One link: the gRPC thread reads into `inbox_`, the group's own thread answers.
class FakeEngine {
 public:
  explicit FakeEngine(grpc::ServerReaderWriter<link::LinkResponse, link::LinkRequest>* stream)
      : stream_(stream), root_(RootHash(kModelKey, "")) {
    static std::atomic<uint64_t> last_epoch = 0;
    epoch_ = ++last_epoch;
  }

  void Serve() {
    SendHello();
    std::thread engine([this] { Run(); });
    link::LinkRequest request;
    while (stream_->Read(&request)) {
      absl::MutexLock lock(&mutex_);
      inbox_.push_back(std::move(request));
    }
    {
      absl::MutexLock lock(&mutex_);
      closed_ = true;
    }
    engine.join();
  }

 private:
  void Run() {
    absl::Time next_load = absl::Now();
    std::deque<link::LinkRequest> step;
    while (true) {
      {
        absl::MutexLock lock(&mutex_);
        mutex_.AwaitWithDeadline(absl::Condition(this, &FakeEngine::HasWork), next_load);
        if (closed_) return;
        step.swap(inbox_);
      }
      Answer(step);
      step.clear();
      if (absl::Now() < next_load) continue;
      SendCache();
      SendLoad();
      next_load = absl::Now() + kLoadInterval;
    }
  }

  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return closed_ || !inbox_.empty(); }

  void Answer(const std::deque<link::LinkRequest>& step) {
    link::LinkResponse rows;
    for (const link::LinkRequest& request : step) {
      if (request.has_cache_sync()) SendSyncReply(request.cache_sync());
      if (!request.has_submit()) continue;
      const link::Submit& submit = request.submit();
      ++submits_;
      link::LinkResponse message;
      link::Ack* ack = message.mutable_ack();
      ack->set_handle(submit.handle());
      ack->set_attempt(submit.attempt());
      ack->set_cached_tokens(Store(submit) * kBlockSize);
      stream_->Write(message);
      for (const link::ChoiceStart& choice : submit.choices()) {
        link::Row* row = rows.mutable_step_output()->add_rows();
        row->set_handle(submit.handle());
        row->set_attempt(submit.attempt());
        row->set_choice(choice.index());
        row->set_token(1000);
        row->set_finish(link::FINISH_LENGTH);
      }
    }
    if (rows.has_step_output()) stream_->Write(rows);
    for (const link::LinkRequest& request : step) {
      if (!request.has_submit()) continue;
      link::LinkResponse message;
      message.mutable_done()->set_handle(request.submit().handle());
      message.mutable_done()->set_attempt(request.submit().attempt());
      stream_->Write(message);
    }
  }

  // Blocks of the prompt that were cached; the others are now.
  int Store(const link::Submit& submit) {
    const std::vector<int32_t> ids(submit.prompt_ids().begin(), submit.prompt_ids().end());
    int num_cached = 0;
    for (const BlockHash& hash : HashBlocks(root_, ids)) {
      if (!cached_.insert(hash).second) {
        ++num_cached;
        continue;
      }
      AppendHash(hash, &stored_);
      digest_ += DigestTerm(hash);
    }
    return num_cached;
  }

  void SendHello() {
    link::LinkResponse message;
    link::Hello* hello = message.mutable_hello();
    hello->set_group(absl::StrCat("g", epoch_));
    hello->set_epoch(epoch_);
    hello->set_ready(true);
    hello->set_model_key(kModelKey);
    hello->set_device("none");
    hello->set_tp_size(1);
    hello->set_ep_size(1);
    hello->set_block_size(kBlockSize);
    hello->set_total_blocks(kTotalBlocks);
    link::Limits* limits = hello->mutable_limits();
    limits->set_vocab_size(kE2eVocabSize);
    limits->set_max_model_len(1 << 17);
    limits->set_max_n(64);
    limits->set_bos_token_id(1);
    limits->set_eos_token_id(2);
    stream_->Write(message);
    SendLoad();
  }

  void SendSyncReply(const link::CacheSync& sync) {
    link::LinkResponse message;
    message.mutable_cache_sync_reply()->set_number(sync.number());
    message.mutable_cache_sync_reply()->set_epoch(epoch_);
    stream_->Write(message);
    link::Buckets* buckets = message.mutable_buckets();
    buckets->set_epoch(epoch_);
    for (int b = 0; b < kNumDigestBuckets; ++b) {
      buckets->mutable_buckets()->push_back(static_cast<char>(b));
    }
    stream_->Write(message);
    in_sync_ = true;
  }

  void SendCache() {
    if (stored_.empty() || !in_sync_) return;
    link::LinkResponse message;
    link::CacheDelta* delta = message.mutable_cache_delta();
    delta->set_epoch(epoch_);
    delta->set_seq(++seq_);
    delta->set_digest(digest_);
    reported_digest_ = digest_;
    delta->set_stored(std::exchange(stored_, {}));
    stream_->Write(message);
  }

  void SendLoad() {
    link::LinkResponse message;
    link::Load* load = message.mutable_load();
    load->set_epoch(epoch_);
    load->set_free_blocks(kTotalBlocks - static_cast<int>(cached_.size()));
    load->set_cached_blocks(static_cast<int>(cached_.size()));
    load->set_prefill_seconds_per_token(1e-6);
    load->set_decode_seconds_per_block(1e-9);
    load->set_cache_seq(seq_);
    load->set_cache_digest(reported_digest_);
    load->set_submits(submits_);
    stream_->Write(message);
  }

  grpc::ServerReaderWriter<link::LinkResponse, link::LinkRequest>* const stream_;
  const BlockHash root_;
  uint64_t epoch_ = 0;
  // The engine thread's.
  uint64_t submits_ = 0, seq_ = 0;
  uint64_t digest_ = 0, reported_digest_ = 0;  // of what is cached; of what the deltas said
  bool in_sync_ = false;
  std::string stored_;  // not reported yet
  absl::flat_hash_set<BlockHash> cached_;

  absl::Mutex mutex_;
  std::deque<link::LinkRequest> inbox_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

E2eGroups::E2eGroups(int num_ports) : ports_(num_ports) {
  grpc::ServerBuilder builder;
  for (int& port : ports_) {
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  }
  builder.SetMaxReceiveMessageSize(-1);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  CHECK(server_ != nullptr);
}

grpc::Status E2eGroups::Link(grpc::ServerContext*, Stream* stream) {
  FakeEngine(stream).Serve();
  return grpc::Status::OK;
}

}  // namespace bough
