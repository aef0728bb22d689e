// Where a request should run: a cost in seconds per group, term by term; the lowest total wins.
//
//   wait         what the group says its queue takes, and what was sent to it since it said so
//   prefill      the uncached part of the prompt, computed there
//   externality  lambda(load) * prefill: what that work delays for everybody behind it. lambda grows
//                with the queue, so a busy group is given less work that another one could skip
//   decode       E[answer] * step time for the context's KV; 0 where requests of the same context
//                are decoding now, because bifurcated attention reads it once for all of them
//                (a block's cost is the groups' mean)
//   eviction     blocks that must go to make room, at the price of computing them again
//
// Pure: same arguments, same answer. No GPU's constants: the groups fit their own coefficients on
// line.
#pragma once

#include <string>
#include <vector>

namespace bough::router {

struct RouteQuery {
  int prompt_tokens = 0;
  int num_choices = 1;
  int max_tokens = 0;  // per choice
};

// What placement may know of one group.
struct GroupView {
  bool accepting = false;
  int matched_blocks = 0;  // leading prompt blocks in its prefix cache or on their way there
  int active_blocks = 0;   // leading prompt blocks that requests in flight there share
  double drain_seconds = 0;
  double unreported_seconds = 0;  // predicted prefill of what was sent since the last load report
  double prefill_seconds_per_token = 0;  // 0 = not fitted yet
  double decode_seconds_per_block = 0;
  int total_blocks = 0, free_blocks = 0;  // free: neither in use nor cached
  int requests = 0;                       // running and waiting
};

struct PolicyCoefficients {
  // lambda = clamp(queue / horizon, min, max).
  double lambda_min = 0.5, lambda_max = 8;
  double lambda_horizon_seconds = 1;
  // Share of max_tokens that an answer is expected to use.
  double expected_answer_ratio = 0.5;
  // Probability that an evicted block is wanted again.
  double reuse_probability = 0.25;
  // Stands in until some group has fitted its own; only the order of groups depends on it then.
  double unfitted_prefill_seconds_per_token = 1e-3;
  // Totals this close count as equal; then the group with the fewest blocks in use wins.
  double tie_ratio = 0.01, tie_seconds = 1e-6;
};

struct CostTerms {
  double wait = 0, prefill = 0, externality = 0, decode = 0, eviction = 0;
  double total() const { return wait + prefill + externality + decode + eviction; }
};

struct Candidate {
  bool accepting = false;
  int matched_tokens = 0;
  double prefill_seconds = 0;  // what the choice adds to the group's queue
  CostTerms terms;
};

struct Placement {
  int chosen = -1;                    // index into the groups; -1 = none accepts
  std::vector<Candidate> candidates;  // one per group
};

Placement PlaceRequest(const RouteQuery& query, const std::vector<GroupView>& groups,
                       const PolicyCoefficients& coefficients);

}  // namespace bough::router
