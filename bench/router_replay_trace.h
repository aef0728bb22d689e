// Requests to replay: a trace file, or one of the generators.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace bough {

inline constexpr int kTraceBlockTokens = 512;

struct ReplayRequest {
  double arrival = 0;  // s
  int input_tokens = 0;
  int output_tokens = 0;  // per choice
  int num_choices = 1;
  // Ids of the prompt's blocks of kTraceBlockTokens, the last one perhaps partial. An id names the
  // whole prefix up to its block, so equal ids mean equal prefixes. In [0, num_ids).
  std::vector<int> blocks;
};

struct ReplayTrace {
  std::vector<ReplayRequest> requests;  // by arrival
  int num_ids = 0;
};

// Mooncake's format: one JSON object a line, {"timestamp": ms, "input_length", "output_length",
// "hash_ids": [...]} and, ours, "n" choices (1 when absent). At most `limit` requests; 0 = all.
absl::StatusOr<ReplayTrace> ReadReplayTrace(const std::string& path, int limit);

// Arrivals + U(0, jitter), then divided by `load` and sorted: a load of 1.3 plays the trace 1.3 times as
// fast. Jitter undoes timestamps that are rounded (to 3 s in Mooncake's traces).
ReplayTrace ScaleTrace(ReplayTrace trace, double jitter_seconds, double load, uint64_t seed);

// Conversations behind one system prompt: Poisson arrivals of sessions, geometric number of turns, each
// turn a request with everything before it as its prefix.
struct ConversationSpec {
  int num_requests = 400;
  double requests_per_second = 4;
  int system_blocks = 4;
  double mean_turns = 4;
  double mean_new_blocks = 6;  // of a turn; the first one's is 4 times that
  double mean_think_seconds = 20;
  int mean_output_tokens = 300;
};
ReplayTrace MakeConversations(const ConversationSpec& spec, uint64_t seed);

// A few long contexts, asked about all the time: Poisson arrivals, each a context, Zipf over contexts,
// a short question of its own and an answer in `num_choices` samples.
struct SharedContextSpec {
  int num_requests = 6000;
  double requests_per_second = 28;
  int num_contexts = 8;
  int context_blocks = 64;
  int question_tokens = 128;
  int mean_output_tokens = 500;
  int num_choices = 1;
};
ReplayTrace MakeSharedContexts(const SharedContextSpec& spec, uint64_t seed);

}  // namespace bough
