// A request as the engine sees it: tokens and numbers, already validated. Made from link.proto's Submit
// in worker/link_messages.cc and nowhere else.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/sampling_params.h"

namespace bough {

// A request's name inside the group: the router's stream and the handle that it chose.
struct RequestKey {
  uint64_t link = 0;
  uint64_t handle = 0;
  friend bool operator==(const RequestKey&, const RequestKey&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const RequestKey& k) {
    return H::combine(std::move(h), k.link, k.handle);
  }
};

// One of the request's samples. `emitted` is what another group already streamed of it: generation goes
// on after these tokens, with the same seed and positions.
struct ChoiceStart {
  int32_t index = 0;
  std::vector<int32_t> emitted;
};

struct Request {
  RequestKey key;
  int32_t attempt = 0;
  std::string request_id;  // for logs
  std::string traceparent;
  std::vector<int32_t> prompt_ids;
  SamplingParams sampling;
  std::vector<ChoiceStart> choices;
  std::string cache_salt;
  int32_t priority = 0;  // higher is sooner
  // Prompt tokens that its router believes to be in the prefix cache, in [0, prompt length). Counts
  // in load reports only, and only until the request is admitted.
  int32_t expected_cached_tokens = 0;
  absl::Time deadline = absl::InfiniteFuture();
};

}  // namespace bough
