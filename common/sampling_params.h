// How a request wants its tokens chosen, and the limits that a model's server sets. Router and worker
// both validate with the same function: the worker trusts nobody.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace bough {

struct SamplingParams {
  float temperature = 1;         // 0 = greedy
  float top_p = 1;               // (0, 1]
  int32_t top_k = 0;             // 0 = whole vocabulary
  float min_p = 0;               // [0, 1]
  float repetition_penalty = 1;  // (0, 10]
  float presence_penalty = 0;    // [-2, 2]
  float frequency_penalty = 0;   // [-2, 2]
  uint64_t seed = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;  // token id -> added to its logit
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  int32_t max_tokens = 16;  // per choice
  int32_t min_tokens = 0;   // EOS and stop tokens are masked before
  int32_t logprobs = -1;    // -1 = none, 0 = chosen token, k = top k too
};

// What one deployment accepts. Defaults are those of GetModel.
struct ModelLimits {
  int32_t vocab_size = 0;
  int32_t max_model_len = 0;  // prompt + answer, tokens
  int32_t max_n = 1024;
  int32_t bos_token_id = 1;
  int32_t eos_token_id = 2;
  int32_t max_logprobs = 20;
  int32_t max_stop_token_ids = 64;
  int32_t max_logit_bias = 1024;
};

// One reason to refuse a request. `description` names limit and value, e.g. "must be in [1, 1024], is 0".
struct FieldViolation {
  std::string field;
  std::string description;
};

// Everything that can be wrong with the numbers of a request, in field order; empty = valid.
// `num_choices` is n or best_of. Fields are named as in bough.v1 (sampling.temperature, ...).
std::vector<FieldViolation> ValidateRequest(const std::vector<int32_t>& prompt_ids,
                                            const SamplingParams& params, int num_choices,
                                            const ModelLimits& limits);

}  // namespace bough
