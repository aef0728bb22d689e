#include "client/route_table.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace bough::client {
namespace {

// The order of the cost's formula; terms that are not listed follow by name.
constexpr const char* kTermOrder[] = {"wait",   "prefill",  "externality",
                                      "decode", "eviction", "next_turn"};

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

std::string RouteTable(std::vector<v1::RouteCandidate> candidates) {
  const std::vector<std::string> terms = TermNames(candidates);
  std::stable_sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) {
    return std::tuple(!a.accepting(), a.total_seconds()) <
           std::tuple(!b.accepting(), b.total_seconds());
  });
  size_t width = 5;
  for (const v1::RouteCandidate& candidate : candidates) {
    width = std::max(width, candidate.group().size());
  }
  const auto column = [](const std::string& name) {
    return std::max<int>(static_cast<int>(name.size()), 9);
  };
  std::string table = absl::StrFormat("ms  %-*s %8s", width, "group", "matched");
  for (const std::string& term : terms) absl::StrAppendFormat(&table, " %*s", column(term), term);
  absl::StrAppendFormat(&table, " %10s\n", "= total");
  for (const v1::RouteCandidate& candidate : candidates) {
    const char mark = candidate.chosen() ? '*' : candidate.accepting() ? ' ' : '-';
    absl::StrAppendFormat(&table, " %c  %-*s %8d", mark, width, candidate.group(),
                          candidate.matched_tokens());
    if (!candidate.accepting()) {
      absl::StrAppend(&table, "  ", candidate.why_not(), "\n");
      continue;
    }
    for (const std::string& term : terms) {
      const auto found = candidate.terms().find(term);
      const double seconds = found == candidate.terms().end() ? 0 : found->second;
      absl::StrAppendFormat(&table, " %*.3f", column(term), 1e3 * seconds);
    }
    absl::StrAppendFormat(&table, " %10.3f%s\n", 1e3 * candidate.total_seconds(),
                          candidate.in_sync() ? "" : "  its cache is not in sync yet");
  }
  return table;
}

}  // namespace bough::client
