#include "bench/router_replay_trace.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <random>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace bough {
namespace {

void SortByArrival(ReplayTrace* trace) {
  std::stable_sort(
      trace->requests.begin(), trace->requests.end(),
      [](const ReplayRequest& a, const ReplayRequest& b) { return a.arrival < b.arrival; });
}

int BlocksOf(int tokens) { return (tokens + kTraceBlockTokens - 1) / kTraceBlockTokens; }

int AtLeastOne(double x) { return std::max(1, static_cast<int>(std::lround(x))); }

}  // namespace

absl::StatusOr<ReplayTrace> ReadReplayTrace(const std::string& path, int limit) {
  std::ifstream in(path);
  if (!in) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  ReplayTrace trace;
  std::unordered_map<int64_t, int> dense;
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    if (line.empty()) continue;
    if (limit > 0 && static_cast<int>(trace.requests.size()) == limit) break;
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    const bool known = json.is_object() && json.contains("timestamp") &&
                       json.contains("input_length") && json.contains("output_length") &&
                       json.contains("hash_ids");
    if (!known) return absl::InvalidArgumentError(absl::StrCat(path, ":", number, ": no request"));
    ReplayRequest r;
    r.arrival = json["timestamp"].get<double>() / 1000;
    r.input_tokens = json["input_length"].get<int>();
    r.output_tokens = std::max(1, json["output_length"].get<int>());
    r.num_choices = json.value("n", 1);
    for (const auto& id : json["hash_ids"]) {
      r.blocks.push_back(dense.emplace(id.get<int64_t>(), dense.size()).first->second);
    }
    if (r.input_tokens < 1 || BlocksOf(r.input_tokens) != static_cast<int>(r.blocks.size())) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", number, ": hash_ids do not cover input_length in blocks of 512"));
    }
    trace.requests.push_back(std::move(r));
  }
  trace.num_ids = static_cast<int>(dense.size());
  SortByArrival(&trace);
  return trace;
}

ReplayTrace ScaleTrace(ReplayTrace trace, double jitter_seconds, double load, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::uniform_real_distribution<double> jitter(0, 1);
  for (ReplayRequest& r : trace.requests) {
    r.arrival = (r.arrival + jitter_seconds * jitter(rng)) / load;
  }
  SortByArrival(&trace);
  return trace;
}

ReplayTrace MakeConversations(const ConversationSpec& spec, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::exponential_distribution<double> next_session(spec.requests_per_second / spec.mean_turns);
  std::exponential_distribution<double> think(1 / spec.mean_think_seconds);
  std::exponential_distribution<double> unit(1);
  std::bernoulli_distribution goes_on(1 - 1 / spec.mean_turns);
  ReplayTrace trace;
  trace.num_ids = spec.system_blocks;
  double start = 0;
  while (static_cast<int>(trace.requests.size()) < spec.num_requests) {
    start += next_session(rng);
    std::vector<int> blocks(spec.system_blocks);
    for (int i = 0; i < spec.system_blocks; ++i) blocks[i] = i;
    double at = start;
    double mean_new = 4 * spec.mean_new_blocks;
    do {
      ReplayRequest r;
      r.arrival = at;
      for (int i = AtLeastOne(mean_new * unit(rng)); i > 0; --i) blocks.push_back(trace.num_ids++);
      r.blocks = blocks;
      r.input_tokens = static_cast<int>(blocks.size()) * kTraceBlockTokens;
      r.output_tokens = AtLeastOne(spec.mean_output_tokens * unit(rng));
      trace.requests.push_back(std::move(r));
      at += think(rng);
      mean_new = spec.mean_new_blocks;
    } while (goes_on(rng));
  }
  SortByArrival(&trace);
  return trace;
}

ReplayTrace MakeSharedContexts(const SharedContextSpec& spec, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::exponential_distribution<double> gap(spec.requests_per_second);
  std::exponential_distribution<double> unit(1);
  std::vector<double> weights;
  for (int i = 0; i < spec.num_contexts; ++i) weights.push_back(1.0 / (1 + i));
  std::discrete_distribution<int> context(weights.begin(), weights.end());
  ReplayTrace trace;
  trace.num_ids = spec.num_contexts * spec.context_blocks;
  double at = 0;
  for (int i = 0; i < spec.num_requests; ++i) {
    ReplayRequest r;
    r.arrival = at += gap(rng);
    const int first = context(rng) * spec.context_blocks;
    for (int b = 0; b < spec.context_blocks; ++b) r.blocks.push_back(first + b);
    for (int b = BlocksOf(spec.question_tokens); b > 0; --b) r.blocks.push_back(trace.num_ids++);
    r.input_tokens = spec.context_blocks * kTraceBlockTokens + spec.question_tokens;
    r.output_tokens = AtLeastOne(spec.mean_output_tokens * unit(rng));
    r.num_choices = spec.num_choices;
    trace.requests.push_back(std::move(r));
  }
  return trace;
}

}  // namespace bough
