// Routing of a mixture of experts: which rows go to which expert, and the weighted way back.
//
//   y(t) = sum_{e in topk(t)} p_e(t) * expert_e(x(t)),   p = softmax of the chosen experts' logits
//
// Mixtral, arXiv 2401.04088 sec. 2.1. The experts themselves are GroupedGemm, SiluMul, GroupedGemm.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/elementwise.h"
#include "kernels/stream.h"

namespace bough {

// The norm before the experts, and the router on its result in the same pass:
//   x = AddRmsNorm(norm);  logits[t, e] = sum_i x[t, i] * gate[e, i]
// The router sees x in norm.dtype, before it is quantised; sums in f32. Then the top_k largest
// logits per token, descending, ties to the lower expert; weights are their softmax.
// 1 <= top_k <= num_experts <= 64.
struct AddRmsNormGateParams {
  AddRmsNormParams norm;
  const void* gate = nullptr;       // [num_experts, norm.hidden_size] gate_dtype
  int32_t* expert_ids = nullptr;    // [num_tokens, top_k]
  float* expert_weights = nullptr;  // [num_tokens, top_k]
  int num_experts = 0, top_k = 0;
  DType gate_dtype = DType::kF32;
};

// Sorts (token, choice) pairs by expert, in token order within an expert, and copies each pair's
// token to its row, so that an expert's rows stand together:
//   rows[row_of_pair[t, j]] = x[t]
// Only experts in [expert_begin, expert_end) are kept: those of this rank. Rows past the last kept
// are not written.
struct MoeRouteParams {
  const int32_t* expert_ids = nullptr;  // [num_tokens, top_k]
  const void* x = nullptr;              // [num_tokens, row_bytes]
  const float* x_scale = nullptr;       // [num_tokens]; nullptr: none
  int32_t* expert_offsets = nullptr;    // [expert_end - expert_begin + 1], from 0 to the rows kept
  int32_t* row_of_pair = nullptr;       // [num_tokens, top_k] row of each pair; -1 = another rank's
  void* rows = nullptr;                 // [num_tokens * top_k, row_bytes]
  float* row_scale = nullptr;           // [num_tokens * top_k] when x_scale is given
  int num_tokens = 0, top_k = 0, expert_begin = 0, expert_end = 0;
  int64_t row_bytes = 0;  // of a token in x, a multiple of 16
};

// out[t] = sum over j ascending of expert_weights[t, j] * rows[row_of_pair[t, j]]; -1 adds nothing.
struct MoeCombineParams {
  const void* rows = nullptr;             // [num_rows, hidden_size] dtype
  const int32_t* row_of_pair = nullptr;   // [num_tokens, top_k]
  const float* expert_weights = nullptr;  // [num_tokens, top_k]
  void* out = nullptr;                    // [num_tokens, hidden_size] dtype
  int num_tokens = 0, top_k = 0, hidden_size = 0;
  DType dtype = DType::kF32;
};

namespace cpu {
void AddRmsNormGate(const AddRmsNormGateParams&);
void MoeRoute(const MoeRouteParams&);
void MoeCombine(const MoeCombineParams&);
}  // namespace cpu

namespace cuda {
void AddRmsNormGate(const AddRmsNormGateParams&, Stream);
void MoeRoute(const MoeRouteParams&, Stream);
void MoeCombine(const MoeCombineParams&, Stream);
}  // namespace cuda

}  // namespace bough
