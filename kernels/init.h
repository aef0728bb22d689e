// Weights without a checkpoint: a tensor whose elements are drawn from a counter, so that any
// rectangle of it can be made anywhere, alone, with the same values.
//
//   i = row * tensor_cols + col,  u = Uniform(key, i) in [-1, 1)
//   out[row - row_begin, col - col_begin] = bf16(mean + half_width * u), the sum rounded once
//
// The values are bf16's also where they are stored as f32. Bound: the bytes written.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/stream.h"

namespace bough {

// SplitMix64's output function as a hash of a counter (Steele, Lea, Flood, OOPSLA 2014): 24 bits of
// it, as a multiple of 2^-23. Exact on both backends.
constexpr float UniformAt(uint64_t key, uint64_t counter) {
  uint64_t z = key + counter * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<float>((z ^ (z >> 31)) >> 40) * 0x1p-23f - 1.0f;
}

struct FillUniformParams {
  void* out = nullptr;  // [num_rows, num_cols] dtype
  uint64_t key = 0;
  float mean = 0, half_width = 1;
  // The rectangle [row_begin, row_begin + num_rows) x [col_begin, col_begin + num_cols).
  int64_t row_begin = 0, num_rows = 0, col_begin = 0, num_cols = 0, tensor_cols = 0;
  DType dtype = DType::kBF16;  // bf16 or f32
};

namespace cpu {
void FillUniform(const FillUniformParams&);
}

namespace cuda {
void FillUniform(const FillUniformParams&, Stream);
}

}  // namespace bough
