// Eight floats at a time, in GCC's vector extension: an expression on F32x8 is the expression on
// each lane. Loads take f32, bf16 or e4m3 and give f32. `Partial` forms touch only the first `count`
// elements.
#pragma once

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "kernels/dtype.h"

namespace bough::cpu {

using BF16 = uint16_t;  // bits
using E4M3 = uint8_t;   // bits

constexpr int kLanes = 8;
using F32x8 = float __attribute__((vector_size(32)));
using I32x8 = int32_t __attribute__((vector_size(32)));
using U32x8 = uint32_t __attribute__((vector_size(32)));
using U16x8 = uint16_t __attribute__((vector_size(16)));
using U8x8 = uint8_t __attribute__((vector_size(8)));
using U8x16 = uint8_t __attribute__((vector_size(16)));

inline F32x8 Broadcast(float x) { return F32x8{x, x, x, x, x, x, x, x}; }

inline F32x8 Load(const float* p) {
  F32x8 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

inline F32x8 Load(const BF16* p) {
  U16x8 v;
  std::memcpy(&v, p, sizeof(v));
#ifdef __AVX2__  // GCC 12 widens each half by itself: 3 times the instructions
  const U32x8 wide = reinterpret_cast<U32x8>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(v)));
#else
  const U32x8 wide = __builtin_convertvector(v, U32x8);
#endif
  return reinterpret_cast<F32x8>(wide << 16);
}

// The bits become f32's with 120 added to the exponent; subnormals, m 2^-9, are 2^-6 (1 + m / 8) less
// 2^-6. The same values as E4M3ToFloat.
inline F32x8 Load(const E4M3* p) {
#ifdef __AVX2__
  int64_t v;
  std::memcpy(&v, p, sizeof(v));
  const U32x8 wide = reinterpret_cast<U32x8>(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(v)));
#else
  U8x8 v;
  std::memcpy(&v, p, sizeof(v));
  const U32x8 wide = __builtin_convertvector(v, U32x8);
#endif
  const U32x8 magnitude = wide & 0x7f, sign = (wide & 0x80) << 24;
  const F32x8 normal = reinterpret_cast<F32x8>((magnitude << 20) + (120u << 23));
  const F32x8 subnormal = reinterpret_cast<F32x8>((magnitude << 20) + (121u << 23)) - 0x1p-6f;
  F32x8 value = magnitude < 8 ? subnormal : normal;
  value = magnitude == 0x7f ? Broadcast(__builtin_nanf("")) : value;
  return reinterpret_cast<F32x8>(reinterpret_cast<U32x8>(value) | sign);
}

// Lanes from `count` on are 0.
template <typename T>
inline F32x8 LoadPartial(const T* p, int count) {
  T v[kLanes] = {};
  std::memcpy(v, p, count * sizeof(T));
  return Load(v);
}

inline void Store(float* p, F32x8 v) { std::memcpy(p, &v, sizeof(v)); }

inline void StorePartial(float* p, F32x8 v, int count) {
  std::memcpy(p, &v, count * sizeof(float));
}

// In one fixed order: lanes 4 apart, then 2 apart, then 1 apart.
inline float Sum(F32x8 v) {
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
  v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
  return v[0] + v[1];
}

// e^x = 2^n e^r with n = round(x / ln 2), so |r| <= ln(2)/2, where the Taylor polynomial of degree
// 7 is within 6e-9 of e^r. 0 below -87, e^88 above 88, NaN for NaN.
inline F32x8 Exp(F32x8 x) {
  x = x > 88.0f ? Broadcast(88.0f) : x;
  const F32x8 t = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the low mantissa bits become n
  const F32x8 n = t - 12582912.0f;
  const F32x8 r = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // ln 2 in two parts
  F32x8 p = r * (1.0f / 5040) + (1.0f / 720);
  p = p * r + (1.0f / 120);
  p = p * r + (1.0f / 24);
  p = p * r + (1.0f / 6);
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const I32x8 power = (reinterpret_cast<I32x8>(t) << 23) + 0x3f800000;
  return x < -87.0f ? Broadcast(0) : p * reinterpret_cast<F32x8>(power);
}

}  // namespace bough::cpu
