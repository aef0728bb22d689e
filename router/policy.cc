#include "router/policy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "common/block_hash.h"
#include "common/check.h"

namespace bough::router {
namespace {

// A group that has not measured itself yet is taken for the slowest that has: the unknown must not
// look cheaper than the known.
double UnfittedPrefill(std::span<const GroupView> groups, const PolicyCoefficients& c) {
  double slowest = 0;
  for (const GroupView& g : groups) slowest = std::max(slowest, g.prefill_seconds_per_token);
  return slowest > 0 ? slowest : c.unfitted_prefill_seconds_per_token;
}

// What a decode step takes. One fit for all groups: they serve one model, and a single group's is off by
// more than groups differ; times the blocks and tokens of an answer that would outweigh any prefix.
struct StepCost {
  double per_row = 0, per_block = 0;

  explicit StepCost(std::span<const GroupView> groups) {
    int num_fitted = 0;
    for (const GroupView& g : groups) {
      if (g.prefill_seconds_per_token <= 0) continue;
      ++num_fitted;
      per_row += g.prefill.fitted() ? g.prefill.per_token : g.prefill_seconds_per_token;
      per_block += g.decode_seconds_per_block;
    }
    if (num_fitted == 0) return;
    per_row /= num_fitted;
    per_block /= num_fitted;
  }
  // Without reading the weights, which is the same everywhere.
  double Seconds(double rows, double blocks) const { return rows * per_row + blocks * per_block; }
};

int BlocksFor(double tokens) { return static_cast<int>((tokens + kBlockSize - 1) / kBlockSize); }

// Of all groups together: what one of them is spared, another one gets.
double Lambda(std::span<const GroupView> groups, const PolicyCoefficients& c) {
  double sum = 0, wait = 0;
  int num_accepting = 0;
  for (const GroupView& g : groups) {
    sum += g.accepting ? g.busy_share : 0;
    wait += g.accepting ? g.drain_seconds + g.unreported_seconds : 0;
    num_accepting += g.accepting;
  }
  const double rho = num_accepting > 0 ? sum / num_accepting : 0;
  const double odds = rho < 1 ? rho / (1 - rho) : std::numeric_limits<double>::infinity();
  wait = num_accepting > 0 ? wait / num_accepting : 0;
  return std::clamp(c.lambda_load * odds + c.lambda_wait * wait, c.lambda_min, c.lambda_max);
}

// What every group's cost has in common.
struct Common {
  double unfitted_per_token = 0;
  StepCost step;
  double lambda = 0;
};

Candidate Score(const RouteQuery& q, const GroupView& g, const Common& common,
                const PolicyCoefficients& c) {
  Candidate out;
  out.accepting = g.accepting;
  // The last token is always computed: its logits give the first new one.
  out.matched_tokens =
      std::clamp(g.matched_blocks * kBlockSize, 0, std::max(q.prompt_tokens - 1, 0));
  const int uncached = q.prompt_tokens - out.matched_tokens;
  const double per_token =
      g.prefill_seconds_per_token > 0 ? g.prefill_seconds_per_token : common.unfitted_per_token;
  const double answer = q.expected_answer_tokens > 0 ? q.expected_answer_tokens
                                                     : c.expected_answer_ratio * q.max_tokens;

  CostTerms& t = out.terms;
  t.wait = g.drain_seconds + g.unreported_seconds;
  t.prefill = g.prefill.fitted() ? g.prefill.Seconds(uncached, out.matched_tokens, g.rows)
                                 : uncached * per_token;
  out.prefill_seconds = t.prefill;
  t.externality = common.lambda * t.prefill;
  const int context_blocks = BlocksFor(q.prompt_tokens);
  const int read_anew = context_blocks - std::min(g.active_blocks, context_blocks);
  const int rows = g.rows + q.num_choices;
  const double before = common.step.Seconds(g.rows, g.active_unique_blocks);
  const double after = common.step.Seconds(
      rows, g.active_unique_blocks + read_anew + q.num_choices * answer / 2 / kBlockSize);
  t.decode = c.decode_weight * answer * (rows * after - g.rows * before);
  const double needed = BlocksFor(uncached) + double{1} * q.num_choices * BlocksFor(answer);
  const double victims = std::max(0.0, needed - g.free_blocks);
  t.eviction = victims * kBlockSize * per_token * c.reuse_probability;
  // How long a block stays: until the group has computed as many as it has room for.
  const double lifetime =
      g.total_blocks * kBlockSize * per_token / std::max(g.busy_share, c.busy_share_min);
  t.next_turn = -c.next_turn_probability * q.prompt_tokens * per_token *
                (lifetime > 0 ? std::exp(-c.next_turn_seconds / lifetime) : 0);
  return out;
}

}  // namespace

Placement PlaceRequest(const RouteQuery& query, std::span<const GroupView> groups,
                       const PolicyCoefficients& coefficients) {
  const int num_groups = static_cast<int>(groups.size());
  CHECK_LE(num_groups, kMaxGroups);
  const Common common = {UnfittedPrefill(groups, coefficients), StepCost(groups),
                         Lambda(groups, coefficients)};
  Placement out;
  bool any_in_time = false;
  for (int i = 0; i < num_groups; ++i) {
    Candidate& candidate = out.candidates[i];
    candidate = Score(query, groups[i], common, coefficients);
    candidate.in_time = candidate.terms.wait + candidate.terms.prefill <= query.seconds_left;
    any_in_time |= groups[i].accepting && candidate.in_time;
  }
  auto eligible = [&](int i) {
    return groups[i].accepting && (out.candidates[i].in_time || !any_in_time);
  };
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < num_groups; ++i) {
    if (eligible(i)) best = std::min(best, out.candidates[i].terms.total());
  }
  const double tie = best + std::abs(best) * coefficients.tie_ratio + coefficients.tie_seconds;
  auto use = [&groups](int i) {
    return std::tuple(groups[i].total_blocks - groups[i].free_blocks, groups[i].requests);
  };
  for (int i = 0; i < num_groups; ++i) {
    if (!eligible(i) || out.candidates[i].terms.total() > tie) continue;
    if (out.chosen < 0 || use(i) < use(out.chosen)) out.chosen = i;
  }
  return out;
}

}  // namespace bough::router
