// Values on their way into an e4m3 cache, where a token's bytes lie a block's rows apart
// (kv_layout.h). Of a prompt, runs of 16 tokens fill 16 bytes in a row and are written so, by thread
// blocks of their own; a token in no run, as in a decode step, goes byte by byte. Its bytes keep an
// SM busy for a us, so those of a few tokens are spread over SMs.
#pragma once

#include "kernels/cuda/rows.cuh"
#include "kernels/elementwise.h"
#include "kernels/kv_layout.h"

namespace bough::cuda {

inline constexpr int kRun = 16;  // tokens
inline constexpr int kFewTokens = 8;
inline constexpr int kPromptTokens = 512;  // from here on, most are in runs

// A run is tokens [first, first + 16) whose slots ascend by one from a multiple of 16.

// Whether token t is in one. The whole warp asks.
__device__ inline bool IsInRun(const RopeAppendParams& p, int64_t t) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t other = t - (kRun - 1) + lane;
  const int slot = other >= 0 && other < p.num_tokens ? p.slot_mapping[other] : -1;
  const int mine = __shfl_sync(kFullWarp, slot, kRun - 1);
  const int first = kRun - 1 - mine % kRun;  // lane
  const bool fits = lane < first || lane >= first + kRun || slot == mine + lane - (kRun - 1);
  return __all_sync(kFullWarp, fits) && mine >= 0;
}

// The run that begins at one of tokens [16 window, 16 window + 16), or -1. The whole warp asks.
__device__ inline int64_t RunOf(const RopeAppendParams& p, int64_t window) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t token = window * kRun + lane;
  const int slot = token < p.num_tokens ? p.slot_mapping[token] : -1;
  unsigned begins = __ballot_sync(kFullWarp, lane < kRun && slot >= 0 && slot % kRun == 0);
  for (; begins != 0; begins &= begins - 1) {
    const int first = __ffs(begins) - 1;
    const int first_slot = __shfl_sync(kFullWarp, slot, first);
    const bool fits = lane < first || lane >= first + kRun || slot == first_slot + lane - first;
    if (__all_sync(kFullWarp, fits)) return window * kRun + first;
  }
  return -1;
}

// Dims of all KV heads: [num_kv_heads * head_dim].
template <typename T>
__device__ const T* ValuesOf(const RopeAppendParams& p, int64_t token) {
  const int64_t num_heads = p.num_heads + p.num_kv_heads;
  return static_cast<const T*>(p.qkv) +
         (token * (num_heads + p.num_kv_heads) + num_heads) * p.head_dim;
}

// Where row 0 of a dim lies in the slot's block.
__device__ inline uint8_t* ValueRow(const RopeAppendParams& p, int slot, int dim) {
  const int64_t block = slot / p.block_size;
  return static_cast<uint8_t*>(p.v_cache) +
         (block * p.num_kv_heads * p.head_dim + dim) * p.block_size;
}

__device__ inline float ScaledValue(const RopeAppendParams& p, float x, int dim) {
  return p.v_scale == nullptr ? x : x / p.v_scale[dim / p.head_dim];
}

// Dims [begin, end) of a token's values by a thread block; neighbouring threads take neighbouring dims.
template <typename T>
class ValueBytes {
 public:
  __device__ ValueBytes(const RopeAppendParams& p, int64_t token, int begin, int end)
      : p_(p), v_(ValuesOf<T>(p, token)), begin_(begin), end_(end) {}

  // Reads the first of them: may go before the slot is known. Store goes after it.
  __device__ void Load() { Load(begin_); }
  __device__ void Store(int slot) {
    const int column = ValueColumn(slot % p_.block_size);
    for (int first = begin_; first < end_; first += kAtOnce * blockDim.x) {
      if (first > begin_) Load(first);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int dim = first + i * blockDim.x + threadIdx.x;
        if (dim >= end_) break;
        const E4M3 code(ScaledValue(p_, ToFloat(x_[i]), dim));
        ValueRow(p_, slot, dim)[column] = code.__x;
      }
    }
  }

 private:
  static constexpr int kAtOnce = 3;  // 8 heads of 128 by 384 threads

  __device__ void Load(int first) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int dim = first + i * blockDim.x + threadIdx.x;
      if (dim < end_) x_[i] = v_[dim];
    }
  }

  const RopeAppendParams& p_;
  const T* const v_;
  const int begin_, end_;
  T x_[kAtOnce];
};

__device__ inline float2 LoadPair(const float* p) { return *reinterpret_cast<const float2*>(p); }
__device__ inline float2 LoadPair(const BF16* p) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(p));
}

// The values of the run that begins in a window, if one does. Each thread takes two dims of all 16
// tokens, the `pair`th.
template <typename T>
__device__ void AppendRun(const RopeAppendParams& p, int64_t window, int pair) {
  const int64_t first = RunOf(p, window);
  const int dim = 2 * pair;
  if (first < 0 || dim >= p.num_kv_heads * p.head_dim) return;
  const int64_t row_size = int64_t{p.num_heads + 2 * p.num_kv_heads} * p.head_dim;
  const T* const v = ValuesOf<T>(p, first) + dim;
  float2 x[kRun];
#pragma unroll
  for (int i = 0; i < kRun; ++i) x[i] = LoadPair(v + i * row_size);
  if (p.v_scale != nullptr) {
    const float scale = p.v_scale[dim / p.head_dim];
#pragma unroll
    for (int i = 0; i < kRun; ++i) x[i] = make_float2(x[i].x / scale, x[i].y / scale);
  }
  static_assert(ValueColumn(2) == 4 && ValueColumn(1) == 1 && ValueColumn(8) == 2,
                "word q has keys 2q, 2q + 1, 2q + 8, 2q + 9");
  E4M3* const e4m3 = nullptr;
  uint32_t words[2][kRun / 4];
#pragma unroll
  for (int q = 0; q < kRun / 4; ++q) {
    const float2 a = x[2 * q], b = x[2 * q + 1], c = x[2 * q + 8], e = x[2 * q + 9];
    words[0][q] = PackPair(a.x, b.x, e4m3) | PackPair(c.x, e.x, e4m3) << 16;
    words[1][q] = PackPair(a.y, b.y, e4m3) | PackPair(c.y, e.y, e4m3) << 16;
  }
  const int slot = p.slot_mapping[first];
  uint8_t* const out = ValueRow(p, slot, dim) + slot % p.block_size;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    *reinterpret_cast<uint4*>(out + i * p.block_size) =
        make_uint4(words[i][0], words[i][1], words[i][2], words[i][3]);
  }
}

// The thread blocks that take nothing but values: of a few tokens each head, of many each window's run.
struct ValueBlocks {
  int num_blocks = 0;
  int per_item = 1;
};

inline ValueBlocks DivideValues(const RopeAppendParams& p, int num_threads) {
  if (p.num_tokens <= kFewTokens) return {p.num_tokens * p.num_kv_heads, p.num_kv_heads};
  const int per_run = CeilDiv(p.num_kv_heads * p.head_dim / 2, num_threads);
  return {p.num_tokens / kRun * per_run, per_run};
}

template <typename T>
__device__ void AppendValues(const RopeAppendParams& p, const ValueBlocks& blocks) {
  const int item = blockIdx.x / blocks.per_item, part = blockIdx.x % blocks.per_item;
  if (p.num_tokens > kFewTokens) return AppendRun<T>(p, item, part * blockDim.x + threadIdx.x);
  ValueBytes<T> values(p, item, part * p.head_dim, (part + 1) * p.head_dim);
  values.Load();
  const int slot = p.slot_mapping[item];
  if (slot >= 0) values.Store(slot);
}

}  // namespace bough::cuda
