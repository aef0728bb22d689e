// What a rank tells Prometheus. Every label series exists from the start, so that a dashboard shows
// zero, not nothing.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/metrics.h"
#include "worker/comm/mpi_group.h"
#include "worker/engine.h"

namespace bough {

// All ranks. Thread-safe.
class RankMetrics {
 public:
  RankMetrics(Metrics* metrics, int rank);
  void ObserveProgress(const RankProgress& progress);  // this rank's own
  // phase: "load" (weights read and placed) or "total" (process start to ready).
  void ObserveStartup(const std::string& phase, absl::Duration duration);
  void SetUp(bool up);

 private:
  prometheus::Gauge& weights_;
  prometheus::Gauge& ready_;
  prometheus::Gauge& up_;
  std::map<std::string, prometheus::Gauge*> startup_;
};

// A request that ended in a step, and why as metrics and logs say it: stop, length, cancelled,
// deadline, queue_full, draining, invalid or error. With several choices the last one's reason
// counts.
struct FinishedRequest {
  const DoneEvent* done;
  std::string reason;
};

// `events` must outlive the result.
std::vector<FinishedRequest> FinishedRequests(const StepEvents& events);

// One line, with the request's id and trace.
void LogFinished(const FinishedRequest& request);

// Rank 0: the engine's side. Thread-safe.
class EngineMetrics {
 public:
  EngineMetrics(Metrics* metrics, int num_blocks);
  void Observe(const StepEvents& events, const std::vector<FinishedRequest>& finished);

 private:
  void ObserveStep(const StepEvents& events);
  void ObserveFinished(const FinishedRequest& request);

  prometheus::Gauge &running_, &waiting_, &kv_usage_;
  prometheus::Counter &queried_tokens_, &hit_tokens_;
  prometheus::Counter &prompt_tokens_, &generated_tokens_, &preemptions_;
  prometheus::Histogram &queue_seconds_, &prefill_seconds_, &decode_seconds_, &batch_tokens_;
  std::map<std::string, prometheus::Counter*> finished_;        // by reason
  std::map<std::string, prometheus::Histogram*> step_seconds_;  // by phase
  int64_t preemptions_seen_ = 0;
};

}  // namespace bough
