// Dense and grouped matrix products with weights as checkpoints store them: one row per output.
//
//   y[m, n] = sum_k x[m, k] * w[n, k]
//
// Bound: weights' bytes for few rows, 2 m n k FLOPs for many.
// The CPU twins sum each output in an order that depends on k alone: a row's result does not change
// with the rows beside it, so a resumed or re-batched sequence gets the same bits.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/stream.h"

namespace bough {

struct GemmParams {
  const void* x = nullptr;  // [m, k] dtype
  const void* w = nullptr;  // [n, k] w_dtype
  void* y = nullptr;        // [m, n] out_dtype; aliases nothing
  int m = 0, n = 0, k = 0;
  DType dtype = DType::kF32, w_dtype = DType::kF32, out_dtype = DType::kF32;
};

// One product per expert over the rows routed to it:
//   y[r, n] = sum_k x[x_rows[r], k] * w[e, n, k],   expert_offsets[e] <= r < expert_offsets[e + 1]
struct GroupedGemmParams {
  const void* x = nullptr;                  // [num_x_rows, k] dtype
  const int32_t* x_rows = nullptr;          // [num_rows] row of x per output row; nullptr: r itself
  const void* w = nullptr;                  // [num_experts, n, k] w_dtype
  const int32_t* expert_offsets = nullptr;  // [num_experts + 1], ascending from 0 to num_rows
  void* y = nullptr;                        // [num_rows, n] dtype
  int num_experts = 0, num_rows = 0, n = 0, k = 0;
  DType dtype = DType::kF32, w_dtype = DType::kF32;
};

namespace cpu {
void Gemm(const GemmParams&);
void GroupedGemm(const GroupedGemmParams&);
}  // namespace cpu

namespace cuda {
void Gemm(const GemmParams&, Stream);
void GroupedGemm(const GroupedGemmParams&, Stream);
}  // namespace cuda

}  // namespace bough
