// What a client is told about its request, as plain values, in this order: StartEvent, then
// DeltaEvent and FinishEvent in any interleaving of choices, then EndEvent. ErrorEvent may come at
// any point and is the last.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "common/grpc_status.h"
#include "router/policy.h"

namespace bough::router {

struct RouteTerm {
  std::string group;
  bool chosen = false;
  bool in_sync = false;  // false: its cached blocks are not known, and count as none
  std::string why_not;   // it does not accept; empty when it does
  Candidate candidate;
};

struct StartEvent {
  std::string group;
  int prompt_tokens = 0;
  int cached_prompt_tokens = 0;
  std::vector<RouteTerm> route;  // only when asked for
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
  std::vector<int32_t> top_ids;
  std::vector<float> top_logprobs;
};

struct DeltaEvent {
  int choice = 0;
  std::string text;                    // valid UTF-8
  std::vector<int32_t> token_ids;      // only when asked for
  std::vector<TokenLogprob> logprobs;  // only when asked for
};

enum class FinishReason { kStop, kLength };

struct FinishEvent {
  int choice = 0;
  FinishReason reason = FinishReason::kStop;
  int stop_string = -1;    // index into Request::stop_strings
  int stop_token_id = -1;  // of StopOptions.stop_token_ids; EOS leaves it at -1
  double mean_logprob = 0;
};

// Counts and durations of a request, for its client, the metrics and the log.
struct RequestSummary {
  std::string group;  // the last attempt's
  int prompt_tokens = 0;
  int cached_prompt_tokens = 0;
  int64_t completion_tokens = 0;  // of all choices
  int shared_kv_blocks = 0;
  int retries = 0;
  // Seconds since arrival; negative = did not happen.
  double queue_seconds = -1, ttft_seconds = -1, e2e_seconds = -1;
  double mean_itl_seconds = 0;
};

struct EndEvent {
  RequestSummary summary;
};

struct ErrorEvent {
  ApiError error;
  RequestSummary summary;
};

using ClientEvent = std::variant<StartEvent, DeltaEvent, FinishEvent, EndEvent, ErrorEvent>;

}  // namespace bough::router
