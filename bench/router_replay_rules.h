// Other routers' placement rules, written anew from their published formulas (the source stands at each
// rule in the .cc). Every rule sees the same fresh load and the same exact index, which is more than
// their systems give them.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "bench/router_replay_trace.h"
#include "router/policy.h"

namespace bough {

enum class ReplayRule {
  kRoundRobin,
  kLeastRequests,
  kSglang,
  kLlmd,
  kDynamo,
  kDynamo8,
  kLmetric,
  kMinTtft,
  kBough,
};

struct ReplayRuleName {
  ReplayRule rule;
  const char* name;   // in results
  const char* title;  // in tables and plots
};
std::span<const ReplayRuleName> AllReplayRules();

// What a rule may know of one group: the policy's view, and what only other rules ask for.
struct ReplayView {
  router::GroupView group;
  double queued_tokens = 0;  // uncached prompt tokens that wait or are being computed
  int waiting = 0;           // requests
  int used_blocks = 0;       // of 64 tokens
};

// One router's rule and its state. Not thread-safe.
class ReplayChooser {
 public:
  ReplayChooser(ReplayRule rule, const router::PolicyCoefficients& coefficients, int num_groups,
                int num_ids, uint64_t seed);

  int Choose(const ReplayRequest& request, const router::RouteQuery& query,
             std::span<const ReplayView> views);

 private:
  int Sglang(const ReplayRequest& request, std::span<const ReplayView> views);
  int Random(std::span<const double> costs);

  const ReplayRule rule_;
  const router::PolicyCoefficients coefficients_;
  std::mt19937_64 rng_;
  int next_ = 0;
  std::vector<std::vector<bool>> routed_;  // [group][block id]: SGLang's tree
  std::vector<router::GroupView> groups_;
  std::vector<double> costs_;
};

}  // namespace bough
