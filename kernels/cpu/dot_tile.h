// out[r][c] = sum_k x[r][k] * w[c][k]: the product under Gemm, GroupedGemm and attention's scores.
//
// Each output has one accumulator of 8 lanes. Lane j sums k = j, j + 8, ... in ascending order,
// elements past the end count as 0, and the lanes are summed in one fixed order. So an output's
// bits depend on its own x row, its own w row and k, never on the tile it was computed in.
#pragma once

#include <cstdint>

#include "kernels/cpu/simd.h"

namespace bough::cpu {

// R x C accumulators stay in registers; each w vector is loaded (and widened) once for R rows.
template <int R, int C, typename W>
inline void DotTile(const float* const* x, const W* w, int64_t w_stride, int k, float* out,
                    int64_t out_stride) {
  F32x8 acc[R][C] = {};
  const auto accumulate = [&](auto load, int i) __attribute__((always_inline)) {
    F32x8 wv[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      wv[c] = load(w + c * w_stride + i);
      __builtin_prefetch(w + (c + C) * w_stride +
                         i);  // the next tile's: rows are too short streams
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const F32x8 xv = load(x[r] + i);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[r][c] += xv * wv[c];
    }
  };
  int i = 0;
  for (; i + kLanes <= k; i += kLanes) accumulate([](const auto* p) { return Load(p); }, i);
  if (i < k) accumulate([&](const auto* p) { return LoadPartial(p, k - i); }, i);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) out[r * out_stride + c] = Sum(acc[r][c]);
  }
}

// All of R rows, C outputs at a time.
template <int R, int C, typename W>
inline void DotRows(const float* const* x, const W* w, int64_t w_stride, int num_cols, int k,
                    float* out, int64_t out_stride) {
  int c = 0;
  for (; c + C <= num_cols; c += C) {
    DotTile<R, C>(x, w + c * w_stride, w_stride, k, out + c, out_stride);
  }
  for (; c < num_cols; ++c) {
    DotTile<R, 1>(x, w + c * w_stride, w_stride, k, out + c, out_stride);
  }
}

// Any number of rows and outputs. 12 accumulators, 3 w and 1 x fill the 16 vector registers.
template <typename W>
inline void Dot(const float* const* x, int num_rows, const W* w, int64_t w_stride, int num_cols,
                int k, float* out, int64_t out_stride) {
  int r = 0;
  for (; r + 4 <= num_rows; r += 4) {
    DotRows<4, 3>(x + r, w, w_stride, num_cols, k, out + r * out_stride, out_stride);
  }
  x += r;
  out += r * out_stride;
  switch (num_rows - r) {
    case 3:
      return DotRows<3, 4>(x, w, w_stride, num_cols, k, out, out_stride);
    case 2:
      return DotRows<2, 4>(x, w, w_stride, num_cols, k, out, out_stride);
    case 1:
      return DotRows<1, 8>(x, w, w_stride, num_cols, k, out, out_stride);
  }
}

}  // namespace bough::cpu
