// From logits to tokens, one row at a time; rows do not see each other.
//
// Logprobs are the log-softmax of the logits as given (vLLM's default, raw_logprobs). Then, in this
// order: logit bias, repetition / presence / frequency penalties, banned tokens, temperature,
// top-k, top-p, min-p; then argmax (temperature 0) or a draw by the Gumbel-max rule
//   token = argmax_v (logit_v / temperature - log(-log u_v)),
//   u_v   = Philox(seed, choice, position, v)
// which needs no sort and no cumulative sum, and depends on nothing but the row.
// Philox4x32-10: Salmon et al., SC'11 (philox.h). Ties go to the lower token id. A NaN logit is
// never chosen; where every token is banned, the answer is token 0.
#pragma once

#include <cstdint>

#include "kernels/stream.h"

namespace bough {

// One row's settings; see common/sampling_params.h for ranges.
struct SamplingRow {
  int32_t logits_row = 0;  // several rows may share one row of logits (n samples of one prompt)
  float temperature = 1, top_p = 1, min_p = 0;
  int32_t top_k = 0;  // 0 = off
  float repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  uint64_t seed = 0;
  int32_t choice = 0;         // which of the request's samples
  int32_t position = 0;       // index of the token in the answer
  int32_t num_logprobs = -1;  // -1 = none, 0 = chosen, k = top k too
  // Half-open ranges into the flat arrays below.
  int32_t bias_begin = 0, bias_end = 0;
  int32_t seen_begin = 0, seen_end = 0;
  int32_t banned_begin = 0, banned_end = 0;
};

struct SampleParams {
  const float* logits = nullptr;      // [num_logits_rows, vocab_size]; not written
  const SamplingRow* rows = nullptr;  // [num_rows]
  const int32_t* bias_ids = nullptr;
  const float* bias_values = nullptr;
  const int32_t* seen_ids = nullptr;     // distinct tokens of prompt and answer
  const int32_t* seen_counts = nullptr;  // occurrences in the answer; 0 = in the prompt only
  const int32_t* banned_ids = nullptr;   // e.g. EOS and stop tokens before min_tokens
  int32_t* tokens = nullptr;             // [num_rows]
  float* logprobs = nullptr;             // [num_rows]; written where num_logprobs >= 0
  int32_t* top_ids = nullptr;     // [num_rows, max_top]; first num_logprobs written, descending
  float* top_logprobs = nullptr;  // as top_ids
  int num_rows = 0, vocab_size = 0, max_top = 0;
};

namespace cpu {
void Sample(const SampleParams&);
}  // namespace cpu

namespace cuda {
void Sample(const SampleParams&, Stream);
}  // namespace cuda

}  // namespace bough
