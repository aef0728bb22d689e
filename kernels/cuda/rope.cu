// RopeAppend. A thread block takes token after token, all heads of each: its threads hold the
// rotated pairs of eight neighbouring angles, which all heads share through shared memory. Heads of v
// go the same way, unrotated. The frequencies do not depend on any kernel before and are ready when
// the first token is.
//
// A token's values in an e4m3 cache are bytes a block's rows apart (kv_layout.h). Of a prompt, 16
// tokens in a row fill 16 bytes in a row: such runs are taken by thread blocks of their own, the first
// of the grid, that write them whole. Other tokens' values, a decode step's, go byte by byte.
#include "kernels/cuda/rows.cuh"
#include "kernels/elementwise.h"
#include "kernels/kv_layout.h"

namespace bough::cuda {
namespace {

constexpr int kBlocksPerSm = 4;
constexpr int kMaxBlocks = 132 * kBlocksPerSm;  // that an H200 holds at once
constexpr int kMaxThreads = 384;
constexpr int kRun = 16;  // tokens

// kWidth elements as f32: eight at once, or one where head_dim is not a multiple of 16.
template <int kWidth>
struct Span {
  float v[kWidth];

  template <typename T>
  static __device__ Span Load(const T* p) {
    if constexpr (kWidth == 1) {
      return {{ToFloat(*p)}};
    } else {
      const Vec x = LoadVec(p);
      Span span;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) span.v[i] = x.v[i];
      return span;
    }
  }

  template <typename T>
  __device__ void Store(T* p) const {
    if constexpr (kWidth == 1) {
      *p = FromFloat<T>(v[0]);
    } else {
      Vec x;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) x.v[i] = v[i];
      StoreVec(p, x);
    }
  }

  __device__ Span Divided(float divisor) const {
    Span span;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) span.v[i] = v[i] / divisor;
    return span;
  }
};

// A run: tokens [first, first + 16) whose slots ascend by one from a multiple of 16. Whether token t
// is in one; the whole warp asks.
__device__ bool IsInRun(const RopeAppendParams& p, int64_t t) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t other = t - (kRun - 1) + lane;
  const int slot = other >= 0 && other < p.num_tokens ? p.slot_mapping[other] : -1;
  const int mine = __shfl_sync(kFullWarp, slot, kRun - 1);
  const int first = kRun - 1 - mine % kRun;  // lane
  const bool fits = lane < first || lane >= first + kRun || slot == mine + lane - (kRun - 1);
  return __all_sync(kFullWarp, fits) && mine >= 0;
}

// The run that begins at one of tokens [16 window, 16 window + 16), or -1.
__device__ int64_t RunOf(const RopeAppendParams& p, int64_t window) {
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

__device__ float2 LoadPair(const float* p) { return *reinterpret_cast<const float2*>(p); }
__device__ float2 LoadPair(const BF16* p) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(p));
}

// A run's values: each thread two dims of the 16 tokens. `part` of the window's pairs of dims.
template <typename T>
__device__ void AppendRun(const RopeAppendParams& p, int64_t window, int part) {
  const int64_t first = RunOf(p, window);
  const int pair = part * blockDim.x + threadIdx.x;
  if (first < 0 || pair >= p.num_kv_heads * p.head_dim / 2) return;
  const int kv_head = 2 * pair / p.head_dim, d = 2 * pair % p.head_dim;
  const int64_t row_size = int64_t{p.num_heads + 2 * p.num_kv_heads} * p.head_dim;
  const T* v = static_cast<const T*>(p.qkv) + first * row_size +
               (p.num_heads + p.num_kv_heads) * p.head_dim + 2 * pair;
  float2 x[kRun];
#pragma unroll
  for (int i = 0; i < kRun; ++i) x[i] = LoadPair(v + i * row_size);
  if (p.v_scale != nullptr) {
    const float scale = p.v_scale[kv_head];
#pragma unroll
    for (int i = 0; i < kRun; ++i) x[i] = make_float2(x[i].x / scale, x[i].y / scale);
  }
  static_assert(ValueColumn(2) == 4 && ValueColumn(1) == 1 && ValueColumn(8) == 2,
                "word q has keys 2q, 2q + 1, 2q + 8, 2q + 9");
  uint32_t words[2][kRun / 4];
  E4M3* const e4m3 = nullptr;
#pragma unroll
  for (int q = 0; q < kRun / 4; ++q) {
    const float2 a = x[2 * q], b = x[2 * q + 1], c = x[2 * q + 8], e = x[2 * q + 9];
    words[0][q] = PackPair(a.x, b.x, e4m3) | PackPair(c.x, e.x, e4m3) << 16;
    words[1][q] = PackPair(a.y, b.y, e4m3) | PackPair(c.y, e.y, e4m3) << 16;
  }
  const int64_t slot = p.slot_mapping[first];
  const int64_t row = (slot / p.block_size * p.num_kv_heads + kv_head) * p.head_dim + d;
  uint8_t* out = static_cast<uint8_t*>(p.v_cache) + row * p.block_size + slot % p.block_size;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    *reinterpret_cast<uint4*>(out + i * p.block_size) =
        make_uint4(words[i][0], words[i][1], words[i][2], words[i][3]);
  }
}

// Dims [i, i + kWidth) of a token's value, which lie at `out`, a block's rows apart.
template <int kWidth>
__device__ void ScatterValues(const Span<kWidth>& x, int block_size, E4M3* out) {
#pragma unroll
  for (int j = 0; j < kWidth; ++j) out[j * block_size] = FromFloat<E4M3>(x.v[j]);
}

// The grid's first num_run_blocks thread blocks take runs, run_parts each window.
template <typename T, typename KV, int kWidth>
__global__ void __launch_bounds__(kMaxThreads, kBlocksPerSm)
    RopeAppendKernel(RopeAppendParams p, int num_run_blocks, int run_parts) {
  constexpr bool kE4M3 = sizeof(KV) == 1;
  if (static_cast<int>(blockIdx.x) < num_run_blocks) {
    WaitForPrevious();
    AllowNext();
    if (kE4M3) AppendRun<T>(p, blockIdx.x / run_parts, blockIdx.x % run_parts);
    return;
  }
  const int half = p.head_dim / 2;
  extern __shared__ float2 shared[];
  float* inv_freq = reinterpret_cast<float*>(shared + 2 * half);  // [half]
  // The power in double, rounded once: the frequencies are then the CPU twin's bit by bit, and
  // the angle of a far position does not drift from it.
  for (int i = threadIdx.x; i < half; i += blockDim.x) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(p.head_dim);
    inv_freq[i] = 1.0f / static_cast<float>(pow(static_cast<double>(p.rope_theta), exponent));
  }
  WaitForPrevious();
  AllowNext();

  const int num_rotated = p.num_heads + p.num_kv_heads;
  const int num_heads = num_rotated + p.num_kv_heads;  // of q, k and v
  const int spans_per_half = half / kWidth, num_spans = num_heads * spans_per_half;
  int buffer = 0;  // two, so that one barrier a token is enough
  const int num_blocks = gridDim.x - num_run_blocks;
  for (int64_t t = blockIdx.x - num_run_blocks; t < p.num_tokens; t += num_blocks, buffer ^= 1) {
    T* row = static_cast<T*>(p.qkv) + t * num_heads * p.head_dim;
    const auto elements = [&](int u) {
      return row + u / spans_per_half * p.head_dim + u % spans_per_half * kWidth;
    };
    Span<kWidth> a = {}, b = {};  // the first is under way while the angles are computed
    if (static_cast<int>(threadIdx.x) < num_spans) {
      a = Span<kWidth>::Load(elements(threadIdx.x));
      b = Span<kWidth>::Load(elements(threadIdx.x) + half);
    }
    float2* rotation = shared + buffer * half;  // [half] cosine, sine
    const int position = p.positions[t], slot = p.slot_mapping[t];
    const bool in_run = kE4M3 && num_run_blocks > 0 && IsInRun(p, t);
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
      sincosf(static_cast<float>(position) * inv_freq[i], &rotation[i].y, &rotation[i].x);
    }
    __syncthreads();

    for (int u = threadIdx.x; u < num_spans; u += blockDim.x) {
      const int head = u / spans_per_half, i = u % spans_per_half * kWidth;
      if (u >= static_cast<int>(blockDim.x)) {
        a = Span<kWidth>::Load(elements(u));
        b = Span<kWidth>::Load(elements(u) + half);
      }
      if (head < num_rotated) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          const float2 angle = rotation[i + j];
          const float x = a.v[j], y = b.v[j];
          a.v[j] = x * angle.x - y * angle.y;
          b.v[j] = y * angle.x + x * angle.y;
        }
        a.Store(elements(u));
        b.Store(elements(u) + half);
      }
      if (head < p.num_heads || slot < 0) continue;

      const bool is_k = head < num_rotated;
      if (!is_k && in_run) continue;
      const int64_t kv_head = head - (is_k ? p.num_heads : num_rotated);
      const float* scale = is_k ? p.k_scale : p.v_scale;
      if (scale != nullptr) {
        a = a.Divided(scale[kv_head]);
        b = b.Divided(scale[kv_head]);
      }
      const int64_t block = slot / p.block_size, block_row = slot % p.block_size;
      if constexpr (kE4M3) {
        if (!is_k) {
          E4M3* values = static_cast<E4M3*>(p.v_cache) + ValueColumn(block_row) +
                         ((block * p.num_kv_heads + kv_head) * p.head_dim + i) * p.block_size;
          ScatterValues(a, p.block_size, values);
          ScatterValues(b, p.block_size, values + half * p.block_size);
          continue;
        }
      }
      KV* cache = static_cast<KV*>(is_k ? p.k_cache : p.v_cache) + i +
                  ((block * p.num_kv_heads + kv_head) * p.block_size + block_row) * p.head_dim;
      a.Store(cache);
      b.Store(cache + half);
    }
  }
}

template <typename T, typename KV>
void LaunchRope(const RopeAppendParams& p, Stream stream) {
  const bool wide = p.head_dim % (2 * kVec) == 0;
  const int num_spans = (p.num_heads + 2 * p.num_kv_heads) * (p.head_dim / 2) / (wide ? kVec : 1);
  const int num_threads = std::min(kMaxThreads, CeilDiv(num_spans, kWarpSize) * kWarpSize);
  const size_t shared_bytes = p.head_dim / 2 * (2 * sizeof(float2) + sizeof(float));
  const int run_parts = CeilDiv(p.num_kv_heads * p.head_dim / 2, num_threads);
  const int num_run_blocks = sizeof(KV) == 1 ? p.num_tokens / kRun * run_parts : 0;
  Launch(wide ? RopeAppendKernel<T, KV, kVec> : RopeAppendKernel<T, KV, 1>,
         num_run_blocks + std::min(p.num_tokens, kMaxBlocks), num_threads, shared_bytes, stream, p,
         num_run_blocks, run_parts);
}

}  // namespace

void RopeAppend(const RopeAppendParams& p, Stream stream) {
  CHECK_EQ(p.head_dim % 2, 0) << "RoPE rotates pairs";
  if (p.num_tokens == 0) return;
  DispatchDType(p.dtype, "qkv", [&]<typename T>() {
    if (p.kv_dtype == DType::kF8E4M3) {
      CHECK_EQ(p.block_size % kRun, 0) << "an e4m3 cache's blocks are of a multiple of 16 keys";
      return LaunchRope<T, E4M3>(p, stream);
    }
    DispatchDType(p.kv_dtype, "the cache", [&]<typename KV>() { LaunchRope<T, KV>(p, stream); });
  });
}

}  // namespace bough::cuda
