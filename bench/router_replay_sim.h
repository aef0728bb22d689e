// Plays a trace through routers and groups in simulated time.
//
// Each of R routers takes a share of the requests by lot. It knows of every group the last load report
// (every 10 ms), what it sent there since, the blocks that the group caches, and its own requests in
// flight. With several routers a dispatch carries the wait its router expects; a group that would take
// 50 ms and a quarter longer refuses it once, with its fresh load; a router that holds requests then
// holds it again.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "bench/router_replay_group.h"
#include "bench/router_replay_rules.h"
#include "bench/router_replay_trace.h"
#include "router/admission.h"

namespace bough {

struct ReplayOptions {
  ReplayRule rule = ReplayRule::kBough;
  router::PolicyCoefficients coefficients;
  ReplayGroupModel group;
  double deadline_seconds = 1e9;  // to the first token; admission rejects what cannot meet it
  int num_groups = 8;
  int num_routers = 1;
  double report_seconds = 0.01;
  bool price_sharing =
      true;  // false: a context that is being decoded costs its siblings all the same
  // Requests wait in the router (bough only); absent: each goes to a group as it arrives.
  std::optional<router::AdmissionConfig> admission;
  uint64_t seed = 1;
  // A request is good when it meets both.
  double slo_ttft = 5, slo_tpot = 0.1;
};

struct ReplayMetrics {
  double hit = 0;  // prompt blocks found in the group's cache, of all
  double ttft_mean = 0, ttft_p50 = 0, ttft_p90 = 0, ttft_p99 = 0;  // s
  double tpot_mean = 0, tpot_p99 = 0;  // s, of requests with two tokens or more
  double goodput = 0;                  // good requests per second of the trace
  double rejects = 0;                  // share of requests
  double imbalance = 0;                // computed prompt tokens, largest group over mean
  double refused = 0;                  // share of dispatches that a group sent back once
};

ReplayMetrics Replay(const ReplayTrace& trace, const ReplayOptions& options);

// What no rule can do better: one least-recently-used cache of all the groups' blocks, one request after
// the other in order of arrival, and no waiting.
struct ReplayOracle {
  double hit = 0;        // prompt blocks found, of all
  double ttft_mean = 0;  // s; the uncached tokens' prefill alone
};
ReplayOracle PooledOracle(const ReplayTrace& trace, const ReplayOptions& options);

}  // namespace bough
