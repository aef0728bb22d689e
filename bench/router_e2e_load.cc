#include "bench/router_e2e_load.h"

#include <sys/prctl.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "bench/router_e2e_group.h"
#include "bough/group/v1/link.grpc.pb.h"
#include "bough/v1/generation.grpc.pb.h"
#include "common/check.h"
#include "grpcpp/grpcpp.h"
#include "router/clock.h"

namespace bough {
namespace {

namespace link = ::bough::group::v1;
using router::MonotonicNow;

constexpr absl::Duration kDrain = absl::Seconds(10);

std::shared_ptr<grpc::Channel> MakeChannel(int port) {
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(-1);
  return grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port),
                                   grpc::InsecureChannelCredentials(), args);
}

// Ids of a prompt; the second half is drawn anew each time.
class Prompts {
 public:
  explicit Prompts(int num_tokens) : ids_(num_tokens) {
    for (int32_t& id : ids_) id = Draw();
  }
  const std::vector<int32_t>& Next() {
    for (size_t i = ids_.size() / 2; i < ids_.size(); ++i) ids_[i] = Draw();
    return ids_;
  }

 private:
  int32_t Draw() { return 3 + static_cast<int32_t>(random_() % (kE2eVocabSize - 3)); }
  std::minstd_rand random_{1};
  std::vector<int32_t> ids_;
};

// When requests leave, and how long each took.
class Run {
 public:
  explicit Run(const E2eLoad& load)
      : load_(load),
        begin_(MonotonicNow() + absl::Seconds(load.warm_up_seconds)),
        end_(begin_ + absl::Seconds(load.seconds)) {}

  // Calls `send` for each request from this thread, then waits for the last answers.
  void Send(const std::function<void()>& send) {
    prctl(PR_SET_TIMERSLACK, 1);
    std::mt19937_64 random(1);
    std::exponential_distribution<double> gap(std::max(load_.rate, 1.0));
    absl::Time next = MonotonicNow();
    while (MonotonicNow() < end_) {
      if (load_.rate > 0) {
        next += absl::Seconds(gap(random));
        const absl::Duration left = next - MonotonicNow();
        if (left > absl::ZeroDuration()) absl::SleepFor(left);
      } else {
        absl::MutexLock lock(&mutex_);
        mutex_.Await(absl::Condition(this, &Run::HasRoom));
      }
      {
        absl::MutexLock lock(&mutex_);
        ++in_flight_;
      }
      send();
    }
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(this, &Run::Idle), kDrain);
    result_.num_failed += in_flight_;
    if (in_flight_ > 0) result_.first_error = "no answer";
  }

  void Answered(absl::Time sent, const grpc::Status& status) {
    const absl::Time now = MonotonicNow();
    absl::MutexLock lock(&mutex_);
    --in_flight_;
    if (!status.ok()) {
      if (++result_.num_failed == 1) result_.first_error = status.error_message();
    } else if (load_.rate > 0 ? sent >= begin_ && sent < end_ : now >= begin_ && now < end_) {
      result_.seconds.push_back(absl::ToDoubleSeconds(now - sent));
    }
  }

  E2eResult TakeResult() {
    absl::MutexLock lock(&mutex_);
    std::sort(result_.seconds.begin(), result_.seconds.end());
    result_.requests_per_s = static_cast<double>(result_.seconds.size()) / load_.seconds;
    return std::move(result_);
  }

 private:
  bool HasRoom() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return in_flight_ < load_.in_flight;
  }
  bool Idle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return in_flight_ == 0; }

  const E2eLoad load_;
  const absl::Time begin_, end_;
  absl::Mutex mutex_;
  int in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
  E2eResult result_ ABSL_GUARDED_BY(mutex_);
};

v1::GenerateRequest MakeRequest(const std::vector<int32_t>& ids) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Add(ids.begin(), ids.end());
  request.mutable_stop()->set_max_tokens(1);
  request.mutable_output()->set_return_token_ids(true);
  return request;
}

// One request and what the completion queue says of it.
class PendingCall {
 public:
  PendingCall() : sent_(MonotonicNow()) {}
  virtual ~PendingCall() = default;
  // False = over.
  virtual bool Proceed(bool ok, Run& run) = 0;

 protected:
  const absl::Time sent_;
  grpc::ClientContext context_;
  grpc::Status status_;
};

class UnaryPending final : public PendingCall {
 public:
  UnaryPending(v1::GenerationService::Stub& stub, const v1::GenerateRequest& request,
               grpc::CompletionQueue* queue)
      : reader_(stub.AsyncGenerate(&context_, request, queue)) {
    reader_->Finish(&response_, &status_, this);
  }
  bool Proceed(bool, Run& run) override {
    run.Answered(sent_, status_);
    return false;
  }

 private:
  v1::GenerateResponse response_;
  std::unique_ptr<grpc::ClientAsyncResponseReader<v1::GenerateResponse>> reader_;
};

class StreamPending final : public PendingCall {
 public:
  StreamPending(v1::GenerationService::Stub& stub, const v1::GenerateRequest& request,
                grpc::CompletionQueue* queue) {
    v1::GenerateStreamRequest message;
    *message.mutable_request() = request;
    reader_ = stub.PrepareAsyncGenerateStream(&context_, message, queue);
    reader_->StartCall(this);  // the receiver may use reader_ from here on
  }
  bool Proceed(bool ok, Run& run) override {
    if (finishing_) {
      if (!has_token_) run.Answered(sent_, status_.ok() ? kNoToken : status_);
      return false;
    }
    if (ok && response_.has_delta() && !std::exchange(has_token_, true)) {
      run.Answered(sent_, grpc::Status::OK);
    }
    finishing_ = !ok;
    if (ok) {
      reader_->Read(&response_, this);
    } else {
      reader_->Finish(&status_, this);
    }
    return true;
  }

 private:
  inline static const grpc::Status kNoToken{grpc::StatusCode::UNKNOWN, "no token came"};
  v1::GenerateStreamResponse response_;
  std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateStreamResponse>> reader_;
  bool has_token_ = false, finishing_ = false;
};

}  // namespace

double Percentile(const E2eResult& result, double percent) {
  CHECK(!result.seconds.empty());
  const size_t last = result.seconds.size() - 1;
  return result.seconds[static_cast<size_t>(percent / 100 * static_cast<double>(last))];
}

E2eResult LoadRouter(int port, bool stream, const E2eLoad& load) {
  auto stub = v1::GenerationService::NewStub(MakeChannel(port));
  Run run(load);
  Prompts prompts(load.prompt_tokens);
  grpc::CompletionQueue queue;
  std::thread receiver([&] {
    void* tag;
    bool ok;
    while (queue.Next(&tag, &ok)) {
      auto* call = static_cast<PendingCall*>(tag);
      if (!call->Proceed(ok, run)) delete call;
    }
  });
  run.Send([&] {
    const v1::GenerateRequest request = MakeRequest(prompts.Next());
    // Each deletes itself by the receiver.
    if (stream) {
      new StreamPending(*stub, request, &queue);
    } else {
      new UnaryPending(*stub, request, &queue);
    }
  });
  queue.Shutdown();
  receiver.join();
  return run.TakeResult();
}

E2eResult LoadGroup(int port, const E2eLoad& load) {
  auto stub = link::GroupLinkService::NewStub(MakeChannel(port));
  grpc::ClientContext context;
  auto stream = stub->Link(&context);
  Run run(load);
  Prompts prompts(load.prompt_tokens);
  absl::Mutex mutex;
  absl::flat_hash_map<uint64_t, absl::Time> sent;
  std::thread receiver([&] {
    link::LinkResponse response;
    while (stream->Read(&response)) {
      for (const link::Row& row : response.step_output().rows()) {
        absl::ReleasableMutexLock lock(&mutex);
        const absl::Time at = sent.extract(row.handle()).mapped();
        lock.Release();
        run.Answered(at, grpc::Status::OK);
      }
    }
  });
  uint64_t handle = 0;
  run.Send([&] {
    link::LinkRequest request;
    link::Submit* submit = request.mutable_submit();
    submit->set_handle(++handle);
    submit->set_attempt(1);
    submit->add_choices();
    const std::vector<int32_t>& ids = prompts.Next();
    submit->mutable_prompt_ids()->Add(ids.begin(), ids.end());
    {
      absl::MutexLock lock(&mutex);
      sent[handle] = MonotonicNow();
    }
    CHECK(stream->Write(request)) << "the group's stream broke";
  });
  context.TryCancel();
  receiver.join();
  return run.TakeResult();
}

void AwaitServing(int port) {
  auto stub = v1::GenerationService::NewStub(MakeChannel(port));
  const absl::Time end = absl::Now() + absl::Seconds(30);
  grpc::Status status;
  do {
    grpc::ClientContext context;
    v1::GenerateResponse response;
    status = stub->Generate(&context, MakeRequest({5, 6, 7}), &response);
    if (status.ok()) return;
    absl::SleepFor(absl::Milliseconds(20));
  } while (absl::Now() < end);
  CHECK(false) << "the router does not serve: " << status.error_message();
}

}  // namespace bough
