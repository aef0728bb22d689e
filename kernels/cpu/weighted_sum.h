// o[r] += sum_j p[r][j] v[j] over row r's own keys [begin[r], end[r]): the product P V of
// attention.
//
// Each element of o takes its keys in ascending order, one fused multiply-add each, so its bits do
// not depend on the tile. A key outside a row's range is never multiplied: it may be NaN.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/simd.h"

namespace bough::cpu {

// R rows and D vectors of head_dim stay in registers; each vector of v is loaded once for R rows.
template <int R, int D, typename T>
inline void AddWeightedTile(float* const* o, const float* p, int p_stride, const T* v, int begin,
                            int end, int head_dim, int d) {
  F32x8 sum[R][D];
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < D; ++i) sum[r][i] = Load(o[r] + d + i * kLanes);
  }
  for (int j = begin; j < end; ++j) {
    F32x8 vj[D];
    for (int i = 0; i < D; ++i) vj[i] = Load(v + int64_t{j} * head_dim + d + i * kLanes);
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < D; ++i) sum[r][i] += p[r * p_stride + j] * vj[i];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < D; ++i) Store(o[r] + d + i * kLanes, sum[r][i]);
  }
}

// R rows over the same keys [begin, end).
template <int R, typename T>
inline void AddWeightedRange(float* const* o, const float* p, int p_stride, const T* v, int begin,
                             int end, int head_dim) {
  if (begin >= end) return;
  constexpr int kVectors = R <= 2 ? 4 : 2;
  int d = 0;
  for (; d + kVectors * kLanes <= head_dim; d += kVectors * kLanes) {
    AddWeightedTile<R, kVectors>(o, p, p_stride, v, begin, end, head_dim, d);
  }
  for (; d + kLanes <= head_dim; d += kLanes) {
    AddWeightedTile<R, 1>(o, p, p_stride, v, begin, end, head_dim, d);
  }
}

// R rows, each over its own keys: before and after what all of them see, one row by itself.
template <int R, typename T>
inline void AddWeightedRagged(float* const* o, const float* p, int p_stride, const T* v,
                              const int* begin, const int* end, int head_dim) {
  const int common_begin = *std::max_element(begin, begin + R);
  const int common_end = std::max(common_begin, *std::min_element(end, end + R));
  const auto add_one = [&](int r, int from, int to) {
    AddWeightedRange<1>(o + r, p + r * p_stride, p_stride, v, from, to, head_dim);
  };
  for (int r = 0; r < R; ++r) add_one(r, begin[r], std::min(end[r], common_begin));
  AddWeightedRange<R>(o, p, p_stride, v, common_begin, common_end, head_dim);
  for (int r = 0; r < R; ++r) add_one(r, std::max(begin[r], common_end), end[r]);
}

// Any number of rows. Row r's weights are p + r * p_stride; head_dim is a multiple of kLanes.
template <typename T>
inline void AddWeighted(float* const* o, int num_rows, const float* p, int p_stride, const T* v,
                        const int* begin, const int* end, int head_dim) {
  int r = 0;
  for (; r + 4 <= num_rows; r += 4) {
    AddWeightedRagged<4>(o + r, p + r * p_stride, p_stride, v, begin + r, end + r, head_dim);
  }
  const auto add_rest = [&]<int R>() {
    AddWeightedRagged<R>(o + r, p + r * p_stride, p_stride, v, begin + r, end + r, head_dim);
  };
  switch (num_rows - r) {
    case 3:
      return add_rest.template operator()<3>();
    case 2:
      return add_rest.template operator()<2>();
    case 1:
      return add_rest.template operator()<1>();
  }
}

}  // namespace bough::cpu
