// A validated request, in the router's own terms. Made from bough.v1 by parse_request.cc.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/sampling_params.h"

namespace bough::router {

struct Request {
  std::string id;
  std::string traceparent;  // as the client sent it; for the group and for logs
  std::vector<int32_t> prompt_ids;
  SamplingParams sampling;  // logprobs >= 0 also when only best_of needs them
  int n = 1;
  int best_of = 1;  // choices that are run, >= n
  std::vector<std::string> stop_strings;
  bool include_stop_string = false;
  // The answer begins a text of its own, so the space that SentencePiece puts first is not part of
  // it.
  bool strip_leading_space = false;
  std::string cache_salt;
  std::string tenant;  // whose share of the service it uses
  int priority = 0;
  bool return_logprobs = false;
  bool return_token_ids = false;
  bool return_prompt = false;
  bool explain_route = false;
  // On the router's monotonic clock.
  absl::Time arrival;
  absl::Time deadline = absl::InfiniteFuture();
};

}  // namespace bough::router
