// The loop of worker/engine.h with a real clock and someone to publish to.
#pragma once

#include <atomic>

#include "absl/time/time.h"
#include "worker/engine.h"
#include "worker/server.h"
#include "worker/worker_metrics.h"

namespace bough {

// Thread-safe.
class StopRequest {
 public:
  // The first call lets running requests finish, the second ends at once.
  void Ask() { ++times_; }
  bool drain() const { return times_ >= 1; }
  bool at_once() const { return times_ >= 2; }

 private:
  std::atomic<int> times_{0};
};

// Makes the calling thread the engine thread. Returns when asked to stop and nothing runs any more,
// or when `drain_timeout` is over.
void RunEngine(Engine* engine, GroupServer* server, EngineMetrics* metrics, const StopRequest& stop,
               absl::Duration drain_timeout);

}  // namespace bough
