// The edge of the core: one lock around the dispatcher, links to the groups, a clock thread, and
// the clients' sinks. Whoever gets an answer registers a sink; everything else is the dispatcher's
// business.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "common/grpc_status.h"
#include "common/tokenizer.h"
#include "router/config.h"
#include "router/dispatcher.h"
#include "router/group_link.h"
#include "router/router_metrics.h"

namespace bough::router {

// Receives a request's events, in order, under the router's lock: it must be quick and must not
// call the router. EndEvent or ErrorEvent is the last call. False = the client is too slow: its
// request is ended and the ErrorEvent that says so follows at once.
using ClientSink = std::function<bool(ClientEvent)>;

// Thread-safe.
class Router {
 public:
  // All pointers outlive this. Groups are connected in the background from now on.
  Router(const RouterConfig& config, const Tokenizer* tokenizer, RouterMetrics* metrics);
  ~Router();

  // The request's handle, > 0, or why it was refused (then the sink is never called). Events may
  // reach the sink before this returns.
  std::optional<ApiError> Start(std::shared_ptr<const Request> request, ClientSink sink,
                                uint64_t* handle);
  // The client is gone or an operator wants the request ended. False = it is over already.
  bool End(uint64_t handle, ApiError error);
  bool EndByRequestId(const std::string& request_id, ApiError error);

  // Reads the state under the lock: `read` must be quick.
  void Inspect(const std::function<void(const Dispatcher&)>& read) const;

  void SetDraining(bool on);
  // False = no such group.
  bool SetGroupDraining(const std::string& group, bool on);
  // A group accepts and the router is not draining: what health checks report.
  bool IsServing() const;
  // Waits until nothing is in flight; false = it took longer than `timeout`.
  bool WaitUntilIdle(absl::Duration timeout) const;

  const RouterConfig& config() const { return config_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  RouterMetrics& metrics() const { return *metrics_; }
  // Called from the clock thread whenever IsServing changes, and once at the start. Set it before
  // anything is served.
  void OnServingChange(std::function<void(bool)> callback);

 private:
  void RunClock();
  // Carries out what the dispatcher decided.
  void Flush(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const RouterConfig config_;
  const Tokenizer* const tokenizer_;
  RouterMetrics* const metrics_;

  mutable absl::Mutex mutex_;
  Dispatcher dispatcher_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<uint64_t, ClientSink> sinks_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_handle_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::function<void(bool)> on_serving_change_ ABSL_GUARDED_BY(mutex_);
  std::optional<bool> reported_serving_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<GroupLink>> links_;  // as config.groups; constant after construction
  std::thread clock_;
};

}  // namespace bough::router
