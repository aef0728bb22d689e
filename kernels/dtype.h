// Element types, and the conversions that both backends agree on bit by bit.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace bough {

enum class DType : uint8_t { kF32, kBF16, kF16, kF8E4M3, kI32 };

constexpr size_t SizeOf(DType t) {
  switch (t) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBF16:
    case DType::kF16:
      return 2;
    case DType::kF8E4M3:
      return 1;
  }
  return 0;
}

constexpr const char* Name(DType t) {
  switch (t) {
    case DType::kF32:
      return "f32";
    case DType::kBF16:
      return "bf16";
    case DType::kF16:
      return "f16";
    case DType::kF8E4M3:
      return "f8_e4m3";
    case DType::kI32:
      return "i32";
  }
  return "?";
}

// bf16 is the upper half of an f32.
inline float BF16ToFloat(uint16_t b) { return std::bit_cast<float>(uint32_t{b} << 16); }

// Round to nearest even; NaN stays NaN.
inline uint16_t FloatToBF16(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

float F16ToFloat(uint16_t h);

// e4m3 as OCP defines it for inference ("e4m3fn", arXiv 2209.05433): no infinities, largest value
// 448, one NaN (0x7f). Round to nearest even; what is too large becomes +-448; NaN stays NaN.
inline constexpr float kMaxE4M3 = 448.0f;
uint8_t FloatToE4M3(float f);
float E4M3ToFloat(uint8_t b);

// FP8 tensors [rows, cols] come with one f32 scale a row: value = element * scale[row].
// Quantising a row x of amax = max |x_i|, wherever an op does it:
//   scale = amax / 448,   element_i = e4m3(x_i * (448 / amax));   all zero and scale 0 if amax is 0

}  // namespace bough
