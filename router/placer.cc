#include "router/placer.h"

#include <algorithm>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace bough::router {
namespace {

// Empty when it accepts.
std::string WhyNot(const GroupState& group, bool excluded) {
  switch (group.phase) {
    case GroupState::Phase::kConnecting:
      return group.last_error.empty() ? "not connected"
                                      : absl::StrCat("not connected: ", group.last_error);
    case GroupState::Phase::kLoading:
      return "loading the model";
    case GroupState::Phase::kReady:
      break;
  }
  if (group.drained_here) return "drained by an operator";
  if (group.load.draining) return "draining";
  return excluded ? "lost or refused this request before" : "";
}

}  // namespace

Placer::Placer(const GroupTable* groups) : groups_(*groups), fit_(groups->size()) {}

std::vector<BlockHash> Placer::Chain(const Request& request) const {
  return HashBlocks(RootHash(groups_.model().model_key, request.cache_salt), request.prompt_ids);
}

Placement Placer::Place(const Request& request, std::span<const BlockHash> chain, uint64_t excluded,
                        std::span<const double> backlog) const {
  const int max_tokens = request.sampling.max_tokens;
  const RouteQuery query{
      .prompt_tokens = static_cast<int>(request.prompt_ids.size()),
      .num_choices = request.best_of,
      .max_tokens = max_tokens,
      .expected_answer_tokens = std::min<double>(mean_answer_.value(), max_tokens)};
  std::vector<GroupView> views = groups_.Views(chain, excluded);
  for (int g = 0; g < groups_.size(); ++g) {
    views[g].prefill = fit_.cost(g);
    if (!backlog.empty()) views[g].unreported_seconds += backlog[g];
  }
  return PlaceRequest(query, views, coefficients_);
}

double Placer::SoonestFirstToken(const Placement& placement) const {
  CHECK_GE(placement.chosen, 0);
  double soonest = std::numeric_limits<double>::infinity();
  for (int g = 0; g < groups_.size(); ++g) {
    const Candidate& c = placement.candidates[g];
    if (!c.accepting) continue;
    const bool speed_known = fit_.cost(g).fitted() || groups_[g].load.prefill_seconds_per_token > 0;
    soonest = std::min(soonest, c.terms.wait + (speed_known ? c.terms.prefill : 0));
  }
  return soonest;
}

std::vector<RouteTerm> Placer::Explain(const Placement& placement, uint64_t excluded) const {
  std::vector<RouteTerm> terms;
  for (int g = 0; g < groups_.size(); ++g) {
    terms.push_back({.group = groups_[g].address.name,
                     .chosen = g == placement.chosen,
                     .in_sync = groups_.cache(g).in_sync(),
                     .why_not = WhyNot(groups_[g], excluded >> g & 1),
                     .candidate = placement.candidates[g]});
  }
  return terms;
}

}  // namespace bough::router
