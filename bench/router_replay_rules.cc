#include "bench/router_replay_rules.h"

#include <algorithm>
#include <limits>

#include "common/block_hash.h"

namespace bough {
namespace {

using router::GroupView;
using router::RouteQuery;

constexpr ReplayRuleName kRules[] = {
    {ReplayRule::kRoundRobin, "round_robin", "round robin"},
    {ReplayRule::kLeastRequests, "least_requests", "least requests"},
    {ReplayRule::kSglang, "sglang", "SGLang cache_aware"},
    {ReplayRule::kLlmd, "llmd", "llm-d 2:1:1"},
    {ReplayRule::kDynamo, "dynamo", "Dynamo linear, scale 1"},
    {ReplayRule::kDynamo8, "dynamo8", "Dynamo linear, scale 8"},
    {ReplayRule::kLmetric, "lmetric", "LMetric, queued prefill"},
    {ReplayRule::kMinTtft, "min_ttft", "minimum predicted TTFT"},
    {ReplayRule::kBough, "bough", "bough"},
};

double Uncached(const RouteQuery& q, const GroupView& g) {
  return q.prompt_tokens - std::clamp(g.matched_blocks * kBlockSize, 0, q.prompt_tokens - 1);
}

double PrefillSeconds(const RouteQuery& q, const GroupView& g) {
  const double uncached = Uncached(q, g);
  return g.prefill.fitted() ? g.prefill.Seconds(uncached, q.prompt_tokens - uncached, g.rows)
                            : uncached * g.prefill_seconds_per_token;
}

// NVIDIA Dynamo, lib/kv-router selector/default.rs with its defaults (overlap credit 1, no decay):
// scale * max(0, active prefill + prompt - overlap) + active decode blocks + this prompt's.
double Dynamo(const RouteQuery& q, const ReplayView& v, double scale) {
  const double prefill = (v.queued_tokens + Uncached(q, v.group)) / kBlockSize;
  const double prompt = static_cast<double>(q.prompt_tokens) / kBlockSize;
  return scale * prefill + v.used_blocks + prompt;
}

// llm-d inference scheduler, sample configuration: prefix score 2, KV utilisation 1, queue 1, each in
// [0, 1]; the highest sum wins, so the cost is its negative.
double Llmd(const RouteQuery& q, const ReplayView& v, std::span<const ReplayView> views) {
  int most = 0, least = std::numeric_limits<int>::max();
  for (const ReplayView& o : views) {
    most = std::max(most, o.waiting);
    least = std::min(least, o.waiting);
  }
  const double prefix = 1 - Uncached(q, v.group) / q.prompt_tokens;
  const double kv = 1 - static_cast<double>(v.used_blocks) / v.group.total_blocks;
  const double queue = most > least ? static_cast<double>(most - v.waiting) / (most - least) : 1;
  return -(2 * prefix + kv + queue);
}

}  // namespace

std::span<const ReplayRuleName> AllReplayRules() { return kRules; }

ReplayChooser::ReplayChooser(ReplayRule rule, const router::PolicyCoefficients& coefficients,
                             int num_groups, int num_ids, uint64_t seed)
    : rule_(rule),
      coefficients_(coefficients),
      rng_(seed),
      groups_(num_groups),
      costs_(num_groups) {
  if (rule == ReplayRule::kSglang) routed_.assign(num_groups, std::vector<bool>(num_ids));
}

// The lowest cost; equal ones by lot.
int ReplayChooser::Random(std::span<const double> costs) {
  int chosen = 0, ties = 0;
  for (int i = 0; i < static_cast<int>(costs.size()); ++i) {
    if (ties > 0 && costs[i] > costs[chosen]) continue;
    ties = ties > 0 && costs[i] == costs[chosen] ? ties + 1 : 1;
    if (std::uniform_int_distribution<int>(1, ties)(rng_) == 1) chosen = i;
  }
  return chosen;
}

// SGLang's cache_aware with abs 64, rel 1.5, threshold 0.3: out of balance in running requests -> the
// shortest queue; else the longest match in a tree of what was routed where, if it covers more than the
// threshold; else the shortest queue. The tree is never pruned here.
int ReplayChooser::Sglang(const ReplayRequest& request, std::span<const ReplayView> views) {
  const int num_groups = static_cast<int>(views.size());
  int most = 0, least = std::numeric_limits<int>::max();
  for (const ReplayView& v : views) {
    most = std::max(most, v.group.requests);
    least = std::min(least, v.group.requests);
  }
  const bool imbalanced = most - least > 64 && most > 1.5 * least;
  std::vector<int> matched(num_groups);
  for (int g = 0; g < num_groups; ++g) {
    while (matched[g] < static_cast<int>(request.blocks.size()) &&
           routed_[g][request.blocks[matched[g]]]) {
      ++matched[g];
    }
  }
  const int longest = *std::max_element(matched.begin(), matched.end());
  const bool follow = !imbalanced && longest > 0.3 * request.blocks.size();
  for (int g = 0; g < num_groups; ++g) {
    const bool candidate = !follow || matched[g] == longest;
    costs_[g] = candidate ? views[g].group.requests : std::numeric_limits<double>::infinity();
  }
  const int chosen = Random(costs_);
  for (int id : request.blocks) routed_[chosen][id] = true;
  return chosen;
}

int ReplayChooser::Choose(const ReplayRequest& request, const RouteQuery& query,
                          std::span<const ReplayView> views) {
  const int num_groups = static_cast<int>(views.size());
  if (rule_ == ReplayRule::kRoundRobin) return next_++ % num_groups;
  if (rule_ == ReplayRule::kSglang) return Sglang(request, views);
  if (rule_ == ReplayRule::kBough) {
    for (int g = 0; g < num_groups; ++g) groups_[g] = views[g].group;
    return router::PlaceRequest(query, groups_, coefficients_).chosen;
  }
  for (int g = 0; g < num_groups; ++g) {
    const ReplayView& v = views[g];
    switch (rule_) {
      case ReplayRule::kLeastRequests:
        costs_[g] = v.group.requests;
        break;
      case ReplayRule::kLlmd:
        costs_[g] = Llmd(query, v, views);
        break;
      case ReplayRule::kDynamo:
        costs_[g] = Dynamo(query, v, 1);
        break;
      case ReplayRule::kDynamo8:
        costs_[g] = Dynamo(query, v, 8);
        break;
      case ReplayRule::kLmetric:
        // LMetric (arXiv 2603.15202): new prefill tokens times batch size, the queued ones included.
        costs_[g] = (v.queued_tokens + Uncached(query, v.group)) * (v.group.requests + 1);
        break;
      default:  // kMinTtft: Mooncake's conductor without transfers (FAST'25, algorithm 1)
        costs_[g] =
            v.group.drain_seconds + v.group.unreported_seconds + PrefillSeconds(query, v.group);
    }
  }
  return Random(costs_);
}

}  // namespace bough
