// Random requests for bench-soak: every feature of a request, in every mixture.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "common/sampling_params.h"
#include "worker/request.h"

namespace bough {

struct SoakShape {
  ModelLimits limits;
  int max_prompt_tokens = 0, max_answer_tokens = 0;
  int num_links = 4;
};

class SoakRequests {
 public:
  SoakRequests(const SoakShape& shape, uint32_t seed);

  // Valid by itself; deadlines count from `now`. Keys never repeat.
  Request Next(absl::Time now);

  // In [lo, hi].
  int Pick(int lo, int hi) { return std::uniform_int_distribution<int>(lo, hi)(random_); }
  bool OneIn(int n) { return Pick(1, n) == 1; }

 private:
  float Real(float lo, float hi) { return std::uniform_real_distribution<float>(lo, hi)(random_); }
  int32_t Token() { return Pick(0, shape_.limits.vocab_size - 1); }
  std::vector<int32_t> Tokens(int num);
  std::vector<int32_t> Prompt();
  SamplingParams Sampling();
  std::vector<ChoiceStart> Choices(int max_tokens);

  const SoakShape shape_;
  std::mt19937 random_;
  std::vector<std::vector<int32_t>> beginnings_;  // of prompts, shared by many
  uint64_t next_handle_ = 1;
};

}  // namespace bough
