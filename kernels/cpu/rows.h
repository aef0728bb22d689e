// What several ops do to a row: quantise it, and sum up the rows of a token's experts.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>

#include "kernels/cpu/simd.h"
#include "kernels/dtype.h"

namespace bough::cpu {

// NaN elements do not count.
inline float AbsMax(const float* x, int size) {
  float amax = 0;
  for (int i = 0; i < size; ++i) amax = std::abs(x[i]) > amax ? std::abs(x[i]) : amax;
  return amax;
}

// What a row of that amax is multiplied with before it is rounded. FLT_MAX: where amax is below
// 2^-119 the quotient is infinite, and zeros would become NaN.
inline float InverseScale(float amax) { return amax == 0 ? 0 : std::min(kMaxE4M3 / amax, FLT_MAX); }

// Writes the row as e4m3 and returns its scale. NaN elements stay NaN.
inline float QuantizeRow(const float* x, int size, uint8_t* out) {
  const float amax = AbsMax(x, size), inverse = InverseScale(amax);
  for (int i = 0; i < size; ++i) out[i] = FloatToE4M3(x[i] * inverse);
  return amax / kMaxE4M3;
}

// A token's pairs: sum over j ascending of weights[j] * rows[row_of_pair[j], :]; -1 adds nothing.
struct ExpertRows {
  const float* rows;           // [num_rows, hidden_size]
  const int32_t* row_of_pair;  // [top_k]
  const float* weights;        // [top_k]
  int top_k, hidden_size;

  // Elements [i, i + kLanes) of the sum, or `count` of them.
  F32x8 SumAt(int i, int count) const {
    F32x8 sum = {};
    for (int j = 0; j < top_k; ++j) {
      if (row_of_pair[j] < 0) continue;
      const float* row = rows + int64_t{row_of_pair[j]} * hidden_size + i;
      sum += Broadcast(weights[j]) * (count == kLanes ? Load(row) : LoadPartial(row, count));
    }
    return sum;
  }
};

// body(i, count) over [0, size), kLanes elements at a time and then the rest.
template <typename Body>
inline void ForEachVector(int size, Body body) {
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) body(i, kLanes);
  if (i < size) body(i, size - i);
}

}  // namespace bough::cpu
