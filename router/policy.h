// Where a request should run: a cost in seconds per group, term by term; the lowest total wins.
//
//   wait         what the group says its queue takes, and what was sent to it since it said so
//   prefill      the uncached part of the prompt, computed there
//   externality  lambda * prefill: what that work delays for everybody else. lambda rises with load:
//                with rho / (1 - rho), rho = share of time that groups have had prefill work, and with
//                the mean wait now, which knows of a burst before rho does
//   decode       how much longer decoding takes for all rows there, its own and the others', over
//                E[answer] steps of rows * seconds per token + KV blocks read * seconds per block.
//                A context that is being decoded there now adds no block, because bifurcated attention
//                reads it once for all
//   eviction     blocks that must go to make room, at the price of computing them again
//   next_turn    <= 0: what the conversation's next turn is expected to find there: less where the
//                cache turns over faster
//
// The n samples of a prompt are one unit, never split. A hot prefix is copied to a second group when, and only when,
// waiting at its holder costs more than computing it again with its externality.
//
// Pure and free of allocation: same arguments, same answer. No GPU's constants: the coefficients are
// fitted on line (router/coefficients.h).
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <span>

#include "router/coefficients.h"
#include "router/prefix_index.h"

namespace bough::router {

struct RouteQuery {
  int prompt_tokens = 0;
  int num_choices = 1;
  int max_tokens = 0;                 // per choice
  double expected_answer_tokens = 0;  // per choice; 0 = expected_answer_ratio of max_tokens
  // To the first token. A group that would take longer is chosen only if every group would.
  double seconds_left = std::numeric_limits<double>::infinity();
};

// What placement may know of one group.
struct GroupView {
  bool accepting = false;
  int matched_blocks = 0;  // leading prompt blocks in its prefix cache or on their way there
  int active_blocks = 0;   // leading prompt blocks that requests in flight there share
  double drain_seconds = 0;
  double unreported_seconds = 0;  // predicted prefill of what was sent since the last load report
  PrefillCost prefill;            // fitted by the router
  double prefill_seconds_per_token =
      0;  // fitted by the group: stands in until `prefill` is; 0 = neither
  double decode_seconds_per_block = 0;    // fitted by the group
  double busy_share = 0;                  // rho
  int total_blocks = 0, free_blocks = 0;  // free: neither in use nor cached
  int requests = 0;                       // running and waiting
  int rows = 0;                      // choices that decode, or will when their prompts are done
  int64_t active_unique_blocks = 0;  // that rows read in a step, shared ones once
};

struct PolicyCoefficients {
  // lambda = clamp(lambda_load * rho / (1 - rho) + lambda_wait * mean wait, min, max); lambda_wait in 1/s.
  double lambda_load = 1, lambda_wait = 0.4, lambda_min = 0.25, lambda_max = 8;
  // Seconds of TTFT that a second of decoding is worth.
  double decode_weight = 0.5;
  // Share of max_tokens that an answer is expected to use.
  double expected_answer_ratio = 0.5;
  // Probability that an evicted block is wanted again.
  double reuse_probability = 0.25;
  // Probability that a conversation goes on, and after how long.
  double next_turn_probability = 0.5;
  double next_turn_seconds = 60;
  double busy_share_min = 0.01;  // of an idle group, for how long its blocks stay
  // Stands in until some group has fitted its own; only the order of groups depends on it then.
  double unfitted_prefill_seconds_per_token = 1e-3;
  // Totals this close count as equal; then the group with the fewest blocks in use wins.
  double tie_ratio = 0.01, tie_seconds = 1e-6;
};

struct CostTerms {
  double wait = 0, prefill = 0, externality = 0, decode = 0, eviction = 0, next_turn = 0;
  double total() const { return wait + prefill + externality + decode + eviction + next_turn; }
};

struct Candidate {
  bool accepting = false;
  bool in_time = false;  // wait and prefill fit into RouteQuery::seconds_left
  int matched_tokens = 0;
  double prefill_seconds = 0;  // what the choice adds to the group's queue
  CostTerms terms;
};

struct Placement {
  int chosen = -1;                               // index into the groups; -1 = none accepts
  std::array<Candidate, kMaxGroups> candidates;  // one per group
};

// REQUIRES: groups.size() <= kMaxGroups.
Placement PlaceRequest(const RouteQuery& query, std::span<const GroupView> groups,
                       const PolicyCoefficients& coefficients);

}  // namespace bough::router
