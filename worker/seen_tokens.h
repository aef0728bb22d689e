// Which tokens an answer has used and how often, for the penalties. The prompt's part is kept once
// per request; a sequence keeps its answer only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace bough {

class SeenTokens {
 public:
  // The distinct tokens of a prompt, ascending.
  static std::vector<int32_t> Distinct(std::span<const int32_t> prompt);

  // Counts one token of the answer. `prompt` is Distinct's result, the same at each call.
  void Add(int32_t token, std::span<const int32_t> prompt);

  // Appends every distinct token of prompt and answer with its occurrences in the answer.
  void AppendTo(std::span<const int32_t> prompt, std::vector<int32_t>* ids,
                std::vector<int32_t>* counts) const;

 private:
  struct Entry {
    int32_t token;
    int32_t count;
    int32_t prompt_idx;  // in Distinct's result; -1 = the prompt lacks it
  };
  std::vector<Entry> answer_;
  absl::flat_hash_map<int32_t, int32_t> index_;  // token -> answer_
};

}  // namespace bough
