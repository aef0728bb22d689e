// FP8 rows as kernels/dtype.h defines them, written from the definition rather than from the code.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "kernels/dtype.h"

namespace bough {

// sign * 2^(exponent - 7) * (1 + mantissa / 8); exponent 0: sign * 2^-6 * mantissa / 8.
inline double E4M3ByDefinition(int code) {
  const int sign = code >> 7 ? -1 : 1, exponent = (code >> 3) & 15, mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return NAN;
  if (exponent == 0) return sign * std::ldexp(mantissa, -9);
  return sign * std::ldexp(8 + mantissa, exponent - 10);
}

// The nearest code by search through all; of two as near, the even one.
inline int NearestE4M3(double value) {
  if (std::isnan(value)) return 0x7f;
  int best = 0;
  for (int code = 1; code < 0x7f; ++code) {
    const double now = std::abs(E4M3ByDefinition(code) - std::abs(value));
    const double before = std::abs(E4M3ByDefinition(best) - std::abs(value));
    if (now < before || (now == before && code % 2 == 0)) best = code;
  }
  return std::signbit(value) ? best | 0x80 : best;
}

struct QuantizedRows {
  std::vector<uint8_t> elements;  // [num_rows, size]
  std::vector<float> scales;      // [num_rows]

  std::vector<float> Floats() const {
    std::vector<float> values;
    const size_t size = scales.empty() ? 1 : elements.size() / scales.size();
    for (size_t i = 0; i < elements.size(); ++i) {
      values.push_back(E4M3ToFloat(elements[i]) * scales[i / size]);
    }
    return values;
  }
};

inline QuantizedRows QuantizeRows(const std::vector<float>& rows, int num_rows) {
  QuantizedRows quantized;
  const size_t size = num_rows == 0 ? 0 : rows.size() / num_rows;
  for (int r = 0; r < num_rows; ++r) {
    const float* row = rows.data() + r * size;
    float amax = 0;
    for (size_t i = 0; i < size; ++i) amax = std::max(amax, std::abs(row[i]));
    quantized.scales.push_back(amax / 448);
    for (size_t i = 0; i < size; ++i) {
      const float scaled = amax == 0 ? 0 : row[i] * (448 / amax);
      quantized.elements.push_back(static_cast<uint8_t>(NearestE4M3(scaled)));
    }
  }
  return quantized;
}

}  // namespace bough
