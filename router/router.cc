#include "router/router.h"

#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "router/api_errors.h"
#include "router/clock.h"

namespace bough::router {
namespace {

// Bounds how late a deadline or a silent group is noticed.
constexpr absl::Duration kTickInterval = absl::Milliseconds(5);

std::string ProcessName() {
  char host[256] = "router";
  gethostname(host, sizeof(host) - 1);
  return absl::StrCat(host, "/", getpid());
}

}  // namespace

Router::Router(const RouterConfig& config, const Tokenizer* tokenizer, RouterMetrics* metrics)
    : config_(config),
      tokenizer_(tokenizer),
      metrics_(metrics),
      dispatcher_(config, tokenizer, metrics) {
  for (int g = 0; g < static_cast<int>(config_.groups.size()); ++g) {
    LinkCallbacks callbacks;
    callbacks.event = [this, g](uint64_t connection, GroupEvent event, absl::Time now) {
      absl::MutexLock lock(&mutex_);
      if (stopping_ || !links_[g]->IsCurrent(connection)) return;
      if (const auto* hello = std::get_if<GroupHello>(&event)) {
        LogInfo("group says hello", {{"group", config_.groups[g].name},
                                     {"epoch", hello->epoch},
                                     {"ready", hello->ready},
                                     {"model_key", hello->model_key}});
      }
      dispatcher_.OnEvent(g, std::move(event), now);
      Flush(now);
    };
    callbacks.down = [this, g](uint64_t connection, const std::string& why, absl::Time now) {
      absl::MutexLock lock(&mutex_);
      if (stopping_ || !links_[g]->IsCurrent(connection)) return;
      const bool was_up = dispatcher_.groups()[g].phase != GroupState::Phase::kConnecting;
      if (was_up) LogWarning("group lost", {{"group", config_.groups[g].name}, {"why", why}});
      dispatcher_.OnDown(g, why, now);
      Flush(now);
    };
    links_.push_back(std::make_unique<GroupLink>(config_.groups[g].address, ProcessName(),
                                                 std::move(callbacks)));
  }
  clock_ = std::thread([this] { RunClock(); });
}

Router::~Router() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  clock_.join();
  // Each waits for its last callback, which still uses links_ and the lock.
  for (auto& link : links_) link->Reset();
  for (auto& link : links_) link.reset();
}

void Router::RunClock() {
  absl::MutexLock lock(&mutex_);
  while (!stopping_) {
    const absl::Time now = MonotonicNow();
    for (auto& link : links_) link->Tick(now);
    dispatcher_.Tick(now);
    Flush(now);
    const bool serving = !dispatcher_.draining() && dispatcher_.groups().num_accepting() > 0;
    if (on_serving_change_ && reported_serving_ != serving) {
      reported_serving_ = serving;
      on_serving_change_(serving);
    }
    mutex_.AwaitWithTimeout(absl::Condition(&stopping_), kTickInterval);
  }
}

void Router::Flush(absl::Time now) {
  for (Actions actions = dispatcher_.TakeActions();
       !actions.commands.empty() || !actions.events.empty() || !actions.resets.empty();
       actions = dispatcher_.TakeActions()) {
    for (int group : actions.resets) {
      LogWarning("group lost", {{"group", config_.groups[group].name},
                                {"why", dispatcher_.groups()[group].last_error}});
      links_[group]->Reset();
    }
    for (const auto& [group, command] : actions.commands) links_[group]->Send(command);
    for (auto& [handle, event] : actions.events) {
      const auto it = sinks_.find(handle);
      if (it == sinks_.end()) continue;  // ended meanwhile
      const bool last =
          std::holds_alternative<EndEvent>(event) || std::holds_alternative<ErrorEvent>(event);
      const bool keeps_up = it->second(std::move(event));
      if (last) {
        sinks_.erase(it);
      } else if (!keeps_up) {
        dispatcher_.End(handle, SlowConsumer(config_.max_pending_bytes), now);
      }
    }
  }
}

std::optional<ApiError> Router::Start(std::shared_ptr<const Request> request, ClientSink sink,
                                      uint64_t* handle) {
  absl::MutexLock lock(&mutex_);
  const absl::Time now = MonotonicNow();
  *handle = ++last_handle_;
  if (auto error = dispatcher_.Start(*handle, std::move(request), now)) return error;
  sinks_.emplace(*handle, std::move(sink));
  Flush(now);
  return std::nullopt;
}

bool Router::End(uint64_t handle, ApiError error) {
  absl::MutexLock lock(&mutex_);
  const absl::Time now = MonotonicNow();
  const bool ended = dispatcher_.End(handle, std::move(error), now);
  Flush(now);
  return ended;
}

bool Router::EndByRequestId(const std::string& request_id, ApiError error) {
  absl::MutexLock lock(&mutex_);
  const absl::Time now = MonotonicNow();
  const uint64_t handle = dispatcher_.FindRequest(request_id);
  if (handle == 0) return false;
  dispatcher_.End(handle, std::move(error), now);
  Flush(now);
  return true;
}

void Router::Inspect(const std::function<void(const Dispatcher&)>& read) const {
  absl::MutexLock lock(&mutex_);
  read(dispatcher_);
}

void Router::SetDraining(bool on) {
  absl::MutexLock lock(&mutex_);
  dispatcher_.SetDraining(on);
}

bool Router::SetGroupDraining(const std::string& group, bool on) {
  absl::MutexLock lock(&mutex_);
  const int g = dispatcher_.groups().Find(group);
  if (g < 0) return false;
  dispatcher_.SetGroupDraining(g, on);
  Flush(MonotonicNow());
  return true;
}

bool Router::IsServing() const {
  absl::MutexLock lock(&mutex_);
  return !dispatcher_.draining() && dispatcher_.groups().num_accepting() > 0;
}

bool Router::WaitUntilIdle(absl::Duration timeout) const {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(
      absl::Condition(
          +[](const Dispatcher* d) { return d->num_in_flight() == 0; }, &dispatcher_),
      timeout);
}

void Router::OnServingChange(std::function<void(bool)> callback) {
  absl::MutexLock lock(&mutex_);
  on_serving_change_ = std::move(callback);
  reported_serving_.reset();
}

}  // namespace bough::router
