#include "worker/model/dummy_weights.h"

#include <cmath>

#include "xxhash.h"

namespace bough {
namespace {

// SplitMix64's output function, as a hash of a counter. [0, 1)
float Uniform(uint64_t key, uint64_t counter) {
  uint64_t z = key + counter * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<float>((z ^ (z >> 31)) >> 40) * 0x1p-24f;
}

}  // namespace

absl::StatusOr<DType> DummyWeights::Find(const TensorSlice&) const { return DType::kBF16; }

void DummyWeights::Copy(const TensorSlice& slice, DType dtype, void* out) const {
  const uint64_t key = XXH3_64bits(slice.tensor.data(), slice.tensor.size());
  const bool is_vector = slice.shape.size() == 1;
  const int64_t num_cols = is_vector ? 1 : slice.shape[1];
  const float half_width = std::sqrt(3.0f / static_cast<float>(num_cols));
  int64_t i = 0;
  for (int64_t row = slice.rows.begin; row < slice.rows.end; ++row) {
    for (int64_t col = slice.cols.begin; col < slice.cols.end; ++col, ++i) {
      const float u = 2 * Uniform(key, row * num_cols + col) - 1;
      // Rounded to bf16 whatever `dtype` is, so that both hold the same value.
      const uint16_t value = FloatToBF16(is_vector ? 1.0f : half_width * u);
      if (dtype == DType::kBF16) {
        static_cast<uint16_t*>(out)[i] = value;
      } else {
        static_cast<float*>(out)[i] = BF16ToFloat(value);
      }
    }
  }
}

}  // namespace bough
