// Seeded random tensors.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "kernels/dtype.h"

namespace bough {

using Random = std::mt19937;

inline int RandomInt(Random& random, int min, int max) {
  return std::uniform_int_distribution<int>(min, max)(random);
}

// Uniform in [-scale, scale), in steps of scale * 2^-23.
inline std::vector<float> RandomFloats(Random& random, int64_t size, float scale = 1) {
  std::vector<float> values(size);
  for (float& v : values) v = (static_cast<float>(random() >> 8) * 0x1p-23f - 1) * scale;
  return values;
}

inline std::vector<uint16_t> ToBF16(const std::vector<float>& values) {
  std::vector<uint16_t> bits(values.size());
  for (size_t i = 0; i < values.size(); ++i) bits[i] = FloatToBF16(values[i]);
  return bits;
}

inline std::vector<float> RoundToBF16(std::vector<float> values) {
  for (float& v : values) v = BF16ToFloat(FloatToBF16(v));
  return values;
}

}  // namespace bough
