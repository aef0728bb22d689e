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

// One cost of a block for all groups. They serve one model, and a single group's fit is off by more
// than groups differ: times the blocks and tokens of an answer that error would outweigh any prefix.
double DecodePerBlock(std::span<const GroupView> groups) {
  double sum = 0;
  int num_fitted = 0;
  for (const GroupView& g : groups) {
    sum += g.decode_seconds_per_block;
    num_fitted += g.prefill_seconds_per_token > 0;
  }
  return num_fitted > 0 ? sum / num_fitted : 0;
}

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
  double unfitted_per_token = 0, decode_per_block = 0, lambda = 0;
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
  t.prefill = g.prefill.fitted() ? g.prefill.Seconds(uncached, out.matched_tokens, g.running)
                                 : uncached * per_token;
  out.prefill_seconds = t.prefill;
  t.externality = common.lambda * t.prefill;
  const int context_blocks = BlocksFor(q.prompt_tokens);
  const int read_anew = context_blocks - std::min(g.active_blocks, context_blocks);
  t.decode =
      c.decode_weight * answer * (g.running + q.num_choices) * read_anew * common.decode_per_block;
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
  const Common common = {UnfittedPrefill(groups, coefficients), DecodePerBlock(groups),
                         Lambda(groups, coefficients)};
  Placement out;
  double best = 0;
  bool any = false;
  for (int i = 0; i < num_groups; ++i) {
    const GroupView& g = groups[i];
    out.candidates[i] = Score(query, g, common, coefficients);
    const double total = out.candidates[i].terms.total();
    if (!g.accepting || (any && total >= best)) continue;
    best = total;
    any = true;
  }
  const double tie = best + std::abs(best) * coefficients.tie_ratio + coefficients.tie_seconds;
  auto use = [&groups](int i) {
    return std::tuple(groups[i].total_blocks - groups[i].free_blocks, groups[i].requests);
  };
  for (int i = 0; i < num_groups; ++i) {
    if (!groups[i].accepting || out.candidates[i].terms.total() > tie) continue;
    if (out.chosen < 0 || use(i) < use(out.chosen)) out.chosen = i;
  }
  return out;
}

}  // namespace bough::router
