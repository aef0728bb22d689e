// Where a request would go now: the policy, asked with what the groups say of themselves and with what
// this router has learnt of their speed and of how long answers get.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "router/client_events.h"
#include "router/coefficients.h"
#include "router/group_table.h"
#include "router/policy.h"
#include "router/request.h"

namespace bough::router {

// Not thread-safe.
class Placer {
 public:
  // `groups` outlives this.
  explicit Placer(const GroupTable* groups);

  // Of the request's prompt, for the model that is served.
  std::vector<BlockHash> Chain(const Request& request) const;

  // Bits of `excluded` do not accept. `backlog[g]`: seconds of work that will go to group g before this
  // request; empty = none.
  Placement Place(const Request& request, std::span<const BlockHash> chain, uint64_t excluded,
                  std::span<const double> backlog = {}) const;
  // Seconds to the first token on the accepting group where it is soonest, so far as anything is known
  // of the groups' speed: its wait alone before that. REQUIRES: a group was chosen.
  double SoonestFirstToken(const Placement& placement) const;
  // The decision term by term, for people.
  std::vector<RouteTerm> Explain(const Placement& placement, uint64_t excluded) const;

  // A prompt took `seconds` from its first step to its first token.
  void OnPrompt(int group, int uncached_tokens, int cached_tokens, int rows, double seconds) {
    fit_.Add(group, uncached_tokens, cached_tokens, rows, seconds);
  }
  // A choice's answer is complete.
  void OnAnswer(int64_t num_tokens) { mean_answer_.Add(static_cast<int>(num_tokens)); }
  // A group starts anew.
  void Forget(int group) { fit_.Forget(group); }

 private:
  const GroupTable& groups_;
  const PolicyCoefficients coefficients_;
  PrefillFit fit_;
  MeanAnswer mean_answer_;
};

}  // namespace bough::router
