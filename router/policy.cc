#include "router/policy.h"

#include <algorithm>
#include <tuple>

#include "common/block_hash.h"

namespace bough::router {
namespace {

// A group that has not measured itself yet is taken for the slowest that has: the unknown must not
// look cheaper than the known.
double UnfittedPrefill(const std::vector<GroupView>& groups, const PolicyCoefficients& c) {
  double slowest = 0;
  for (const GroupView& g : groups) slowest = std::max(slowest, g.prefill_seconds_per_token);
  return slowest > 0 ? slowest : c.unfitted_prefill_seconds_per_token;
}

// One cost of a block for all groups. They serve one model, and a single group's fit is off by more
// than groups differ: times the blocks and tokens of an answer that error would outweigh any prefix.
double DecodePerBlock(const std::vector<GroupView>& groups) {
  double sum = 0;
  int num_fitted = 0;
  for (const GroupView& g : groups) {
    sum += g.decode_seconds_per_block;
    num_fitted += g.prefill_seconds_per_token > 0;
  }
  return num_fitted > 0 ? sum / num_fitted : 0;
}

int BlocksFor(double tokens) { return static_cast<int>((tokens + kBlockSize - 1) / kBlockSize); }

Candidate Score(const RouteQuery& q, const GroupView& g, double prefill_seconds_per_token,
                double decode_seconds_per_block, const PolicyCoefficients& c) {
  Candidate out;
  out.accepting = g.accepting;
  // The last token is always computed: its logits give the first new one.
  out.matched_tokens =
      std::clamp(g.matched_blocks * kBlockSize, 0, std::max(q.prompt_tokens - 1, 0));
  const int uncached = q.prompt_tokens - out.matched_tokens;
  const double answer = c.expected_answer_ratio * q.max_tokens;

  CostTerms& t = out.terms;
  t.wait = g.drain_seconds + g.unreported_seconds;
  t.prefill = uncached * prefill_seconds_per_token;
  out.prefill_seconds = t.prefill;
  t.externality =
      std::clamp(t.wait / c.lambda_horizon_seconds, c.lambda_min, c.lambda_max) * t.prefill;
  const int context_blocks = BlocksFor(q.prompt_tokens);
  const int read_anew = context_blocks - std::min(g.active_blocks, context_blocks);
  t.decode = answer * read_anew * decode_seconds_per_block;
  const double needed = BlocksFor(uncached) + double{1} * q.num_choices * BlocksFor(answer);
  const double victims = std::max(0.0, needed - g.free_blocks);
  t.eviction = victims * kBlockSize * prefill_seconds_per_token * c.reuse_probability;
  return out;
}

}  // namespace

Placement PlaceRequest(const RouteQuery& query, const std::vector<GroupView>& groups,
                       const PolicyCoefficients& coefficients) {
  const double unfitted = UnfittedPrefill(groups, coefficients);
  const double decode_per_block = DecodePerBlock(groups);
  Placement out;
  double best = -1;
  for (const GroupView& g : groups) {
    const double per_token =
        g.prefill_seconds_per_token > 0 ? g.prefill_seconds_per_token : unfitted;
    out.candidates.push_back(Score(query, g, per_token, decode_per_block, coefficients));
    const double total = out.candidates.back().terms.total();
    if (g.accepting && (best < 0 || total < best)) best = total;
  }
  const double tie = best * (1 + coefficients.tie_ratio) + coefficients.tie_seconds;
  auto use = [&groups](int i) {
    return std::tuple(groups[i].total_blocks - groups[i].free_blocks, groups[i].requests);
  };
  for (int i = 0; i < static_cast<int>(groups.size()); ++i) {
    if (!groups[i].accepting || out.candidates[i].terms.total() > tie) continue;
    if (out.chosen < 0 || use(i) < use(out.chosen)) out.chosen = i;
  }
  return out;
}

}  // namespace bough::router
