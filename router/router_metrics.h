// The router's metric families, made once with every label series so that none is absent before its
// first event. Names are frozen (tests/metrics_names.txt); "bough_" is put in front.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/metrics.h"
#include "router/config.h"

namespace bough::router {

// Thread-safe: handles are atomic, the maps never change.
class RouterMetrics {
 public:
  // `metrics` outlives this.
  RouterMetrics(Metrics* metrics, const std::vector<GroupAddress>& groups);

  // A call of Generate or GenerateStream is over.
  void CountCall(absl::StatusCode code, double seconds);
  // Refused before any group took it.
  void CountRejected(const std::string& reason);
  // reason: stop, length, cancelled, deadline or error.
  void CountFinished(const std::string& reason);
  void SetGroupUp(const std::string& group, bool up);

  prometheus::Histogram& time_to_first_token;
  prometheus::Histogram& inter_token_latency;
  prometheus::Histogram& time_per_output_token;
  prometheus::Histogram& route_decision;
  prometheus::Counter& prompt_tokens;
  prometheus::Counter& cached_prompt_tokens;
  prometheus::Counter& generated_tokens;
  prometheus::Counter& cancelled;
  prometheus::Counter& within_slo;
  prometheus::Counter& resumes;
  prometheus::Gauge& requests_in_flight;
  prometheus::Gauge& groups_ready;
  prometheus::Gauge& index_blocks;

 private:
  std::map<absl::StatusCode, prometheus::Counter*> requests_;
  std::map<absl::StatusCode, prometheus::Histogram*> durations_;
  std::map<std::string, prometheus::Counter*> rejected_, finished_;
  std::map<std::string, prometheus::Gauge*> group_up_;
};

}  // namespace bough::router
