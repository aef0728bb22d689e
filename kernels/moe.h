// Routing of a mixture of experts: which rows go to which expert, and the weighted way back.
//
//   y(t) = sum_{e in topk(t)} p_e(t) * expert_e(x(t)),   p = softmax of the chosen experts' logits
//
// Mixtral, arXiv 2401.04088 sec. 2.1. The experts themselves are GroupedGemm, SiluMul, GroupedGemm.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/stream.h"

namespace bough {

// The top_k largest logits per token, descending, ties to the lower expert; weights are their
// softmax. 1 <= top_k <= num_experts.
struct TopKGateParams {
  const float* logits = nullptr;    // [num_tokens, num_experts]
  int32_t* expert_ids = nullptr;    // [num_tokens, top_k]
  float* expert_weights = nullptr;  // [num_tokens, top_k]
  int num_tokens = 0, num_experts = 0, top_k = 0;
};

// Sorts (token, choice) pairs by expert, in token order within an expert. Only experts in
// [expert_begin, expert_end) are kept: those of this rank.
struct MoeRouteParams {
  const int32_t* expert_ids = nullptr;  // [num_tokens, top_k]
  int32_t* expert_offsets = nullptr;    // [expert_end - expert_begin + 1], from 0 to the rows kept
  int32_t* row_tokens = nullptr;        // [num_tokens * top_k]; of kept rows, then unspecified
  int32_t* row_of_pair = nullptr;       // [num_tokens, top_k] row of each pair; -1 = another rank's
  int num_tokens = 0, top_k = 0, expert_begin = 0, expert_end = 0;
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
void TopKGate(const TopKGateParams&);
void MoeRoute(const MoeRouteParams&);
void MoeCombine(const MoeCombineParams&);
}  // namespace cpu

namespace cuda {
void TopKGate(const TopKGateParams&, Stream);
void MoeRoute(const MoeRouteParams&, Stream);
void MoeCombine(const MoeCombineParams&, Stream);
}  // namespace cuda

}  // namespace bough
