// The router's metric families, made once with every label series so that none is absent before its
// first event. Names are frozen (tests/metrics_names.txt); "bough_" is put in front.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "router/config.h"

namespace bough::router {

class GroupTable;

// Thread-safe: handles are atomic, the maps never change.
class RouterMetrics {
 public:
  // `metrics` outlives this.
  // `tenants` have a label value of their own; all others share one.
  RouterMetrics(Metrics* metrics, const std::vector<GroupAddress>& groups,
                const std::map<std::string, double>& tenants = {});

  // A call of Generate or GenerateStream is over.
  void CountCall(absl::StatusCode code, double seconds);
  // Refused before any group took it.
  void CountRejected(const std::string& reason);
  // reason: stop, length, cancelled, deadline or error.
  void CountFinished(const std::string& reason);
  // Requests of this tenant that wait at the router for their turn.
  void AddHeld(const std::string& tenant, int change);
  void SetGroupUp(const std::string& group, bool up);
  // The streams from the groups: how fresh and how right what they told is.
  void ObserveStreams(const GroupTable& groups, absl::Time now);

  prometheus::Histogram& time_to_first_token;
  prometheus::Histogram& inter_token_latency;
  prometheus::Histogram& time_per_output_token;
  prometheus::Histogram& route_decision;
  prometheus::Histogram& held_time;
  prometheus::Histogram& ttft_over_predicted;
  prometheus::Counter& prompt_tokens;
  prometheus::Counter& cached_prompt_tokens;
  prometheus::Counter& generated_tokens;
  prometheus::Counter& cancelled;
  prometheus::Counter& within_slo;
  prometheus::Counter& resumes;
  prometheus::Gauge& requests_in_flight;
  prometheus::Gauge& groups_ready;
  prometheus::Gauge& index_blocks;
  prometheus::Gauge& index_bytes;

 private:
  prometheus::Counter &cache_full_syncs_, &cache_gaps_, &cache_repaired_buckets_,
      &cache_sync_bytes_;
  prometheus::Counter& foreseen_cached_tokens_;
  std::map<std::string, prometheus::Counter*> forecasts_;                     // by outcome
  std::map<std::string, prometheus::Gauge*> held_;                            // by tenant
  std::map<std::string, prometheus::Gauge*> in_sync_, cache_lag_, load_age_;  // by group
  std::map<absl::StatusCode, prometheus::Counter*> requests_;
  std::map<absl::StatusCode, prometheus::Histogram*> durations_;
  std::map<std::string, prometheus::Counter*> rejected_, finished_;
  std::map<std::string, prometheus::Gauge*> group_up_;
};

}  // namespace bough::router
