#include "client/route_table.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace bough::client {
namespace {

// The order of the cost's formula; terms that are not listed follow by name.
constexpr const char* kTermOrder[] = {"wait", "prefill", "externality", "decode", "eviction"};

std::vector<std::string> TermNames(const std::vector<v1::RouteCandidate>& candidates) {
  std::vector<std::string> names;
  for (const v1::RouteCandidate& candidate : candidates) {
    for (const auto& [name, seconds] : candidate.terms()) {
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
  }
  const auto rank = [](const std::string& name) {
    return std::find(std::begin(kTermOrder), std::end(kTermOrder), name) - std::begin(kTermOrder);
  };
  std::sort(names.begin(), names.end(), [&](const std::string& a, const std::string& b) {
    return std::pair(rank(a), a) < std::pair(rank(b), b);
  });
  return names;
}

}  // namespace

std::string RouteTable(const std::vector<v1::RouteCandidate>& candidates) {
  const std::vector<std::string> terms = TermNames(candidates);
  size_t width = 5;
  for (const v1::RouteCandidate& candidate : candidates) {
    width = std::max(width, candidate.group().size());
  }
  std::string table = absl::StrFormat("  %-*s %8s", width, "group", "matched");
  for (const std::string& term : terms) absl::StrAppendFormat(&table, " %12s", term + "_s");
  absl::StrAppendFormat(&table, " %12s\n", "total_s");
  for (const v1::RouteCandidate& candidate : candidates) {
    const char mark = candidate.chosen() ? '*' : candidate.accepting() ? ' ' : '-';
    absl::StrAppendFormat(&table, "%c %-*s %8d", mark, width, candidate.group(),
                          candidate.matched_tokens());
    for (const std::string& term : terms) {
      const auto found = candidate.terms().find(term);
      const double seconds = found == candidate.terms().end() ? 0 : found->second;
      absl::StrAppendFormat(&table, " %12.6f", seconds);
    }
    absl::StrAppendFormat(&table, " %12.6f\n", candidate.total_seconds());
  }
  return table;
}

}  // namespace bough::client
