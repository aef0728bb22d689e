// Dense and grouped matrix products with weights as checkpoints store them: one row per output.
//
//   y[m, n] = x_scale[m] * w_scale[n] * sum_k x[m, k] * w[n, k]
//
// x and w are both f8_e4m3 with both scales (per token and per output channel), or neither is and
// the scales are nullptr. Sums and scales in f32, y rounded once.
// Bound: weights' bytes for few rows, 2 m n k FLOPs for many.
// The CPU twins sum each output in an order that depends on k alone: a row's result does not change
// with the rows beside it, so a resumed or re-batched sequence gets the same bits. The CUDA twins
// split k over thread blocks by the shape: same inputs and shape, same bits.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/stream.h"

namespace bough {

// CUDA's scratch for partial sums and counters. Zeroed before its first use; ops leave the counters
// zero. One op at a time may use it.
inline constexpr int64_t kGemmWorkspaceBytes = 32ll << 20;

struct GemmParams {
  const void* x = nullptr;         // [m, k] dtype
  const float* x_scale = nullptr;  // [m]
  const void* w = nullptr;         // [n, k] w_dtype
  const float* w_scale = nullptr;  // [n]
  void* y = nullptr;               // [m, n] out_dtype; aliases nothing
  void* workspace = nullptr;       // kGemmWorkspaceBytes; the CPU takes nullptr
  int m = 0, n = 0, k = 0;
  DType dtype = DType::kF32, w_dtype = DType::kF32, out_dtype = DType::kF32;
};

// One product per expert over its rows of x, which stand together:
//   y[r, n] = x_scale[r] * w_scale[e, n] * sum_k x[r, k] * w[e, n, k],
//   expert_offsets[e] <= r < expert_offsets[e + 1]
struct GroupedGemmParams {
  const void* x = nullptr;                  // [num_rows, k] dtype
  const float* x_scale = nullptr;           // [num_rows]
  const void* w = nullptr;                  // [num_experts, n, k] w_dtype
  const float* w_scale = nullptr;           // [num_experts, n]
  const int32_t* expert_offsets = nullptr;  // [num_experts + 1], ascending from 0
  void* y = nullptr;                        // [num_rows, n] out_dtype
  void* workspace = nullptr;                // as GemmParams
  // num_rows: rows that x and y have; the offsets' last is the number computed, known on the device.
  int num_experts = 0, num_rows = 0, n = 0, k = 0;
  DType dtype = DType::kF32, w_dtype = DType::kF32, out_dtype = DType::kF32;
  // For CUDA: expert_offsets were written before the kernel just before this op's, and that one lets
  // the next begin only after its own wait. Weights are then fetched while it still runs.
  bool offsets_known = false;
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
