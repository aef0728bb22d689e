// Rows of activations, eight elements at a time: 16 bytes of bf16, 8 of e4m3, 32 of f32. Rows hold a
// multiple of eight elements, so that every access is aligned.
#pragma once

#include <algorithm>
#include <cfloat>

#include "kernels/cuda/device.cuh"

namespace bough::cuda {

inline constexpr int kVec = 8;

struct Vec {
  float v[kVec] = {};
};

// Eight elements as they lie in memory. As words: 16-bit elements would take a register each.
template <typename T>
struct alignas(16) RawVec {
  uint32_t words[kVec * sizeof(T) / 4];
};

template <typename T>
__device__ RawVec<T> LoadRaw(const T* p) {
  return *reinterpret_cast<const RawVec<T>*>(p);
}

template <typename T>
__device__ Vec Widen(const RawVec<T>& raw) {
  Vec x;
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    if constexpr (sizeof(T) == 4) {
      x.v[i] = __uint_as_float(raw.words[i]);
    } else {  // bf16 is the upper half of an f32
      const uint32_t word = raw.words[i / 2];
      x.v[i] = __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000u);
    }
  }
  return x;
}

template <typename T>
__device__ Vec LoadVec(const T* p) {
  return Widen(LoadRaw(p));
}

__device__ inline uint32_t PackPair(float a, float b, BF16*) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return reinterpret_cast<const uint32_t&>(pair);
}

__device__ inline uint32_t PackPair(float a, float b, E4M3*) {
  return __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
}

__device__ inline void StoreVec(float* p, const Vec& x) {
  reinterpret_cast<float4*>(p)[0] = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
  reinterpret_cast<float4*>(p)[1] = make_float4(x.v[4], x.v[5], x.v[6], x.v[7]);
}

__device__ inline void StoreVec(BF16* p, const Vec& x) {
  *reinterpret_cast<uint4*>(p) =
      make_uint4(PackPair(x.v[0], x.v[1], p), PackPair(x.v[2], x.v[3], p),
                 PackPair(x.v[4], x.v[5], p), PackPair(x.v[6], x.v[7], p));
}

__device__ inline void StoreVec(E4M3* p, const Vec& x) {
  *reinterpret_cast<uint2*>(p) =
      make_uint2(PackPair(x.v[0], x.v[1], p) | PackPair(x.v[2], x.v[3], p) << 16,
                 PackPair(x.v[4], x.v[5], p) | PackPair(x.v[6], x.v[7], p) << 16);
}

// As x is once stored in T.
template <typename T>
__device__ Vec Rounded(Vec x) {
#pragma unroll
  for (int i = 0; i < kVec; ++i) x.v[i] = ToFloat(FromFloat<T>(x.v[i]));
  return x;
}

// A NaN does not count.
__device__ inline float AbsMax(float amax, const Vec& x) {
#pragma unroll
  for (int i = 0; i < kVec; ++i) amax = fmaxf(amax, fabsf(x.v[i]));
  return amax;
}

__device__ inline Vec operator*(Vec x, float factor) {
#pragma unroll
  for (int i = 0; i < kVec; ++i) x.v[i] *= factor;
  return x;
}

// A row of that amax is quantised as x * InverseScale(amax), with Scale(amax). FLT_MAX: where amax
// is below 2^-119 the quotient is infinite, and zeros would become NaN.
__device__ inline float InverseScale(float amax) {
  return amax == 0 ? 0 : fminf(kMaxE4M3 / amax, FLT_MAX);
}
__device__ inline float Scale(float amax) { return amax / kMaxE4M3; }

// sum over j ascending of weights[j] * rows[row_of_pair[j], i : i + kVec]; -1 adds nothing. Two rows
// at a time and without branches, so that their loads are under way together.
template <typename T>
__device__ Vec SumExpertRows(const T* rows, int hidden_size, const int32_t* row_of_pair,
                             const float* weights, int top_k, int i) {
  Vec sum;
  for (int j = 0; j < top_k; j += 2) {
    RawVec<T> raw[2] = {};
    float weight[2] = {};
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const int64_t row = j + u < top_k ? row_of_pair[j + u] : -1;
      if (row >= 0) raw[u] = LoadRaw(rows + row * hidden_size + i);
      if (row >= 0) weight[u] = weights[j + u];
    }
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const Vec x = Widen(raw[u]);
#pragma unroll
      for (int k = 0; k < kVec; ++k) sum.v[k] += weight[u] * x.v[k];
    }
  }
  return sum;
}

// How a thread block holds a row in registers: thread i has vectors i, i + num_threads, ... of it.
struct RowConfig {
  int vecs_per_thread;  // 1, 2, 4 or 8
  int num_threads;      // a multiple of 32
};

inline RowConfig PickRowConfig(int size, int max_threads) {
  CHECK(size % kVec == 0 && size <= 8 * max_threads * kVec)
      << "rows have a multiple of " << kVec << " elements, at most " << 8 * max_threads * kVec
      << ", not " << size;
  const int num_vecs = size / kVec;
  int vecs_per_thread = 1;
  while (vecs_per_thread * max_threads < num_vecs) vecs_per_thread *= 2;
  const int num_warps = CeilDiv(CeilDiv(num_vecs, vecs_per_thread), kWarpSize);
  return {vecs_per_thread, std::max(num_warps, 1) * kWarpSize};
}

// Calls run.template operator()<kVecs>() with the config's vecs_per_thread.
template <typename Run>
void DispatchRowConfig(const RowConfig& config, Run run) {
  switch (config.vecs_per_thread) {
    case 1:
      return run.template operator()<1>();
    case 2:
      return run.template operator()<2>();
    case 4:
      return run.template operator()<4>();
    default:
      return run.template operator()<8>();
  }
}

// Calls run.template operator()<T, Out>() for a dtype and an out_dtype that is the same or e4m3.
template <typename Run>
void DispatchOut(DType dtype, DType out_dtype, const char* what, Run run) {
  DispatchDType(dtype, what, [&]<typename T>() {
    if (out_dtype == DType::kF8E4M3) return run.template operator()<T, E4M3>();
    CHECK(out_dtype == dtype) << "out is " << Name(out_dtype) << " while " << what << " is "
                              << Name(dtype) << ", CUDA gives the same dtype or f8_e4m3";
    run.template operator()<T, T>();
  });
}

}  // namespace bough::cuda
