#include "kernels/init.h"

#include <cmath>

#include "common/check.h"
#include "kernels/cpu/parallel.h"

namespace bough::cpu {
namespace {

constexpr double kFlopsPerElement = 16;  // of the hash, for ParallelFor

template <typename T>
T Stored(uint16_t bf16) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return BF16ToFloat(bf16);
  } else {
    return bf16;
  }
}

template <typename T>
void FillRows(const FillUniformParams& p) {
  ParallelFor(static_cast<int>(p.num_rows), kFlopsPerElement * p.num_rows * p.num_cols, [&](int r) {
    T* out = static_cast<T*>(p.out) + r * p.num_cols;
    const int64_t first = (p.row_begin + r) * p.tensor_cols + p.col_begin;
    for (int64_t col = 0; col < p.num_cols; ++col) {
      const float value = std::fma(p.half_width, UniformAt(p.key, first + col), p.mean);
      out[col] = Stored<T>(FloatToBF16(value));
    }
  });
}

}  // namespace

void FillUniform(const FillUniformParams& p) {
  CHECK(p.dtype == DType::kBF16 || p.dtype == DType::kF32) << Name(p.dtype);
  if (p.dtype == DType::kF32) return FillRows<float>(p);
  FillRows<uint16_t>(p);
}

}  // namespace bough::cpu
