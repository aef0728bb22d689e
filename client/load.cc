#include "client/load.h"

#include <algorithm>
#include <map>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

namespace bough::client {
namespace {

constexpr double kTickSeconds = 0.1;

double MonotonicSeconds() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

class Load;

// One stream. Its load frees it, after OnDone.
class Call final : public grpc::ClientReadReactor<v1::GenerateStreamResponse> {
 public:
  Call(Load& load, const v1::GenerateRequest& request) : load_(load), timer_(MonotonicSeconds()) {
    *request_.mutable_request() = request;
  }

  void Start(v1::GenerationService::Stub& stub, absl::Duration timeout) {
    context_.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    stub.async()->GenerateStream(&context_, &request_, this);
    StartRead(&event_);
    StartCall();
  }
  void Cancel() { context_.TryCancel(); }

  void OnReadDone(bool ok) override {
    if (!ok) return;  // OnDone follows
    timer_.Observe(event_, MonotonicSeconds());
    StartRead(&event_);
  }
  void OnDone(const grpc::Status& status) override;

 private:
  Load& load_;
  grpc::ClientContext context_;
  v1::GenerateStreamRequest request_;
  v1::GenerateStreamResponse event_;
  RequestTimer timer_;
};

class Load {
 public:
  Load(const std::shared_ptr<grpc::Channel>& channel,
       const std::vector<v1::GenerateRequest>& requests, const LoadConfig& config)
      : stub_(v1::GenerationService::NewStub(channel)),
        requests_(requests),
        config_(config),
        start_(MonotonicSeconds()) {
    progress_.total = static_cast<int>(requests.size());
  }

  LoadResult Run(const std::function<void(const LoadProgress&)>& on_progress) {
    do {
      while (Call* call = NextDue()) call->Start(*stub_, config_.timeout);
      AwaitChange();
      FreeEnded();
      on_progress(Progress());
    } while (!Ended());
    absl::MutexLock lock(&mutex_);
    return {std::move(records_), progress_.seconds};
  }

  // From any thread.
  void Stop() {
    absl::MutexLock lock(&mutex_);
    stopped_ = true;
    changed_.Signal();
  }

  // The call's last act.
  void Finished(Call* call, RequestRecord record) {
    absl::MutexLock lock(&mutex_);
    ++progress_.finished;
    --progress_.in_flight;
    progress_.failed += !record.ok();
    progress_.output_tokens += record.output_tokens;
    progress_.seconds = MonotonicSeconds() - start_;
    records_.push_back(std::move(record));
    ended_.push_back(call);
    changed_.Signal();
  }

 private:
  bool AllSent() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopped_ || next_ == requests_.size();
  }

  bool Ended() {
    absl::MutexLock lock(&mutex_);
    return AllSent() && progress_.in_flight == 0 && ended_.empty();
  }

  // A call that is to start now; nullptr when none is.
  Call* NextDue() {
    absl::MutexLock lock(&mutex_);
    const bool open_loop = !config_.arrivals.empty();
    const bool bounded = !open_loop || config_.concurrency > 0;
    if (AllSent() || (bounded && progress_.in_flight >= config_.concurrency)) return nullptr;
    if (open_loop && config_.arrivals[next_] > MonotonicSeconds() - start_) return nullptr;
    auto call = std::make_unique<Call>(*this, requests_[next_++]);
    Call* started = call.get();
    calls_[started] = std::move(call);
    ++progress_.in_flight;
    return started;
  }

  // Until a stream ends, an arrival is due, or it is time to show progress.
  void AwaitChange() {
    absl::MutexLock lock(&mutex_);
    double wait = kTickSeconds;
    if (!AllSent() && next_ < config_.arrivals.size()) {
      wait = std::min(wait, config_.arrivals[next_] - (MonotonicSeconds() - start_));
    }
    if (ended_.empty() && wait > 0) changed_.WaitWithTimeout(&mutex_, absl::Seconds(wait));
  }

  // Cancels the rest too, once stopped.
  void FreeEnded() {
    std::vector<Call*> ended;
    bool stopped;
    {
      absl::MutexLock lock(&mutex_);
      ended.swap(ended_);
      stopped = stopped_;
    }
    for (Call* call : ended) calls_.erase(call);
    if (!stopped) return;
    for (auto& [call, owned] : calls_) call->Cancel();
  }

  LoadProgress Progress() {
    absl::MutexLock lock(&mutex_);
    LoadProgress now = progress_;
    now.seconds = MonotonicSeconds() - start_;
    return now;
  }

  const std::unique_ptr<v1::GenerationService::Stub> stub_;
  const std::vector<v1::GenerateRequest>& requests_;
  const LoadConfig& config_;
  const double start_;
  std::map<Call*, std::unique_ptr<Call>> calls_;  // by the thread of Run only

  absl::Mutex mutex_;
  absl::CondVar changed_;
  std::vector<Call*> ended_ ABSL_GUARDED_BY(mutex_);  // may be freed
  std::vector<RequestRecord> records_ ABSL_GUARDED_BY(mutex_);
  LoadProgress progress_ ABSL_GUARDED_BY(mutex_);
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
};

void Call::OnDone(const grpc::Status& status) {
  load_.Finished(this, timer_.Finish(status.error_code(), MonotonicSeconds()));
}

}  // namespace

LoadResult RunLoad(const std::shared_ptr<grpc::Channel>& channel,
                   const std::vector<v1::GenerateRequest>& requests, const LoadConfig& config,
                   const std::function<void(const LoadProgress&)>& on_progress,
                   Interrupt& interrupt) {
  Load load(channel, requests, config);
  InterruptScope on_interrupt(interrupt, [&load] { load.Stop(); });
  return load.Run(on_progress);
}

}  // namespace bough::client
