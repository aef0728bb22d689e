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

// Uniform in [-scale, scale).
inline std::vector<float> RandomFloats(Random& random, int64_t size, float scale = 1) {
  std::uniform_real_distribution<float> uniform(-scale, scale);
  std::vector<float> values(size);
  for (float& v : values) v = uniform(random);
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
