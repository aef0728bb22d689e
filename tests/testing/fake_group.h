// A worker group's end of the link, scripted: a real gRPC server in this process that answers every
// Submit by its script. No model: token i of every choice is script.tokens[i], whatever was asked.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "bough/group/v1/link.grpc.pb.h"
#include "common/block_hash.h"
#include "common/check.h"
#include "grpcpp/grpcpp.h"

namespace bough::testing {

namespace link = ::bough::group::v1;

struct FakeScript {
  std::vector<int32_t> tokens;             // of every choice
  link::Finish finish = link::FINISH_EOS;  // carried by the last
  int die_after = -1;  // the stream breaks once this many tokens of a request were sent
  std::string refuse;  // Done with this reason instead of an answer
  // A Submit that says what wait it expects is sent back, once the group's real wait is this long.
  double drain_seconds = 0;
  bool mute = false;      // takes requests and says nothing about them
  bool hold_end = false;  // the last token is never sent
  int cached_tokens = 0, shared_blocks = 0;
  float logprob_step = 0;  // logprob of choice c's tokens is -1 + c * logprob_step
};

class FakeGroup final : public link::GroupLinkService::Service {
 public:
  explicit FakeGroup(const std::string& name, FakeScript script = {})
      : name_(name), script_(script) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.SetMaxReceiveMessageSize(-1);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    CHECK(server_ != nullptr);
    address_ = "127.0.0.1:" + std::to_string(port);
    heartbeat_ = std::thread([this] { Beat(); });
  }

  ~FakeGroup() override { Kill(); }

  // The process is gone: its stream breaks and nobody answers at its address any more.
  void Kill() {
    {
      absl::MutexLock lock(&mutex_);
      dead_ = true;
    }
    server_->Shutdown(std::chrono::system_clock::now());
    if (heartbeat_.joinable()) heartbeat_.join();
  }

  const std::string& name() const { return name_; }
  const std::string& address() const { return address_; }

  std::vector<link::Submit> submits() const {
    absl::MutexLock lock(&mutex_);
    return submits_;
  }
  std::vector<link::Cancel> cancels() const {
    absl::MutexLock lock(&mutex_);
    return cancels_;
  }
  bool WaitForSubmits(size_t n) const {
    return Wait([this, n] { return submits_.size() >= n; });
  }
  bool WaitForCancels(size_t n) const {
    return Wait([this, n] { return cancels_.size() >= n; });
  }

 private:
  using Stream = grpc::ServerReaderWriter<link::LinkResponse, link::LinkRequest>;

  grpc::Status Link(grpc::ServerContext* context, Stream* stream) override {
    {
      absl::MutexLock lock(&mutex_);
      if (dead_ || stream_ != nullptr) return {grpc::StatusCode::UNAVAILABLE, "gone"};
      stream_ = stream;
      context_ = context;
      ++epoch_;
      stream_submits_ = 0;
      SendHello();
    }
    link::LinkRequest request;
    while (stream->Read(&request)) {
      absl::MutexLock lock(&mutex_);
      if (request.has_submit()) OnSubmit(request.submit());
      if (request.has_cancel()) cancels_.push_back(request.cancel());
      if (request.has_cache_sync()) OnSync(request.cache_sync());
    }
    absl::MutexLock lock(&mutex_);
    stream_ = nullptr;
    return grpc::Status::OK;
  }

  void Send(const link::LinkResponse& message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (stream_ != nullptr) stream_->Write(message);
  }

  void SendHello() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    link::LinkResponse message;
    link::Hello* hello = message.mutable_hello();
    hello->set_group(name_);
    hello->set_epoch(epoch_);
    hello->set_ready(true);
    hello->set_model_key("fake");
    hello->set_device("fake");
    hello->set_tp_size(1);
    hello->set_ep_size(1);
    hello->set_block_size(kBlockSize);
    hello->set_total_blocks(1000);
    hello->set_architecture("MixtralForCausalLM");
    hello->mutable_limits()->set_vocab_size(400);
    hello->mutable_limits()->set_max_model_len(32768);
    hello->mutable_limits()->set_max_n(1024);
    hello->mutable_limits()->set_bos_token_id(1);
    hello->mutable_limits()->set_eos_token_id(2);
    Send(message);
    SendLoad();
  }

  // Nothing is cached.
  void OnSync(const link::CacheSync& sync) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    link::LinkResponse message;
    message.mutable_cache_sync_reply()->set_number(sync.number());
    message.mutable_cache_sync_reply()->set_epoch(epoch_);
    Send(message);
    message.mutable_buckets()->set_epoch(epoch_);
    for (int b = 0; b < kNumDigestBuckets; ++b) {
      message.mutable_buckets()->mutable_buckets()->push_back(static_cast<char>(b));
    }
    Send(message);
  }

  link::Load Load() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    link::Load load;
    load.set_epoch(epoch_);
    load.set_free_blocks(1000);
    load.set_prefill_seconds_per_token(1e-4);
    load.set_drain_seconds(script_.drain_seconds);
    load.set_submits(stream_submits_);
    return load;
  }

  void SendLoad() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    link::LinkResponse message;
    *message.mutable_load() = Load();
    Send(message);
  }

  void OnSubmit(const link::Submit& submit) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    submits_.push_back(submit);
    ++stream_submits_;
    if (script_.mute) return;
    if (submit.has_expected_wait_seconds() &&
        script_.drain_seconds > 1.25 * submit.expected_wait_seconds() + 0.05) {
      link::LinkResponse message;
      message.mutable_refused()->set_handle(submit.handle());
      message.mutable_refused()->set_attempt(submit.attempt());
      *message.mutable_refused()->mutable_load() = Load();
      return Send(message);
    }
    if (!script_.refuse.empty())
      return SendDone(submit, grpc::StatusCode::UNAVAILABLE, script_.refuse);
    link::LinkResponse message;
    message.mutable_ack()->set_handle(submit.handle());
    message.mutable_ack()->set_attempt(submit.attempt());
    message.mutable_ack()->set_cached_tokens(script_.cached_tokens);
    message.mutable_ack()->set_shared_blocks(script_.shared_blocks);
    Send(message);
    const int end = static_cast<int>(script_.tokens.size());
    int num_sent = 0;
    for (int i = 0; i < end; ++i) {
      link::LinkResponse step;
      for (const link::ChoiceStart& choice : submit.choices()) {
        if (i < choice.emitted_ids_size() || (script_.hold_end && i == end - 1)) continue;
        AddRow(submit, choice.index(), i, step.mutable_step_output()->add_rows());
      }
      if (num_sent == script_.die_after) {
        context_->TryCancel();
        dead_ = true;
        return;
      }
      num_sent += step.step_output().rows_size();
      if (step.has_step_output()) Send(step);
    }
    if (!script_.hold_end) SendDone(submit, grpc::StatusCode::OK, "");
  }

  void AddRow(const link::Submit& submit, int choice, int index, link::Row* row)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    row->set_handle(submit.handle());
    row->set_attempt(submit.attempt());
    row->set_choice(choice);
    row->set_index(index);
    row->set_token(script_.tokens[index]);
    row->set_logprob(-1 + static_cast<float>(choice) * script_.logprob_step);
    if (index + 1 == static_cast<int>(script_.tokens.size())) row->set_finish(script_.finish);
  }

  void SendDone(const link::Submit& submit, grpc::StatusCode code, const std::string& reason)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    link::LinkResponse message;
    link::Done* done = message.mutable_done();
    done->set_handle(submit.handle());
    done->set_attempt(submit.attempt());
    done->set_code(code);
    done->set_reason(reason);
    done->set_message(reason.empty() ? "" : "the group refused: " + reason);
    Send(message);
  }

  void Beat() {
    absl::MutexLock lock(&mutex_);
    while (!dead_) {
      SendLoad();
      mutex_.AwaitWithTimeout(absl::Condition(&dead_), absl::Milliseconds(50));
    }
  }

  bool Wait(std::function<bool()> condition) const {
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithTimeout(
        absl::Condition(
            +[](std::function<bool()>* c) { return (*c)(); }, &condition),
        absl::Seconds(20));
  }

  const std::string name_;
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
  std::thread heartbeat_;

  mutable absl::Mutex mutex_;
  const FakeScript script_;
  Stream* stream_ ABSL_GUARDED_BY(mutex_) = nullptr;
  grpc::ServerContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
  uint64_t epoch_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t stream_submits_ ABSL_GUARDED_BY(mutex_) = 0;
  bool dead_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<link::Submit> submits_ ABSL_GUARDED_BY(mutex_);
  std::vector<link::Cancel> cancels_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace bough::testing
