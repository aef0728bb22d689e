// RopeAppend. A thread block takes token after token, all heads of each: its threads hold the
// rotated pairs of eight neighbouring angles, which all heads share through shared memory. Heads of v
// go the same way, unrotated. The frequencies do not depend on any kernel before and are ready when
// the first token is.
//
// A token's values in an e4m3 cache are bytes that lie a block's rows apart (kv_layout.h): the grid's
// first thread blocks take them, 16 tokens at a time. Of a prompt, 16 tokens fill 16 bytes in a row
// and are written so; a decode step's go byte by byte, spread over many SMs.
#include "kernels/cuda/rows.cuh"
#include "kernels/elementwise.h"
#include "kernels/kv_layout.h"

namespace bough::cuda {
namespace {

constexpr int kBlocksPerSm = 4;
constexpr int kMaxBlocks = 132 * kBlocksPerSm;  // that an H200 holds at once
constexpr int kMaxThreads = 384;
constexpr int kRun = 16;  // tokens
constexpr int kSpreadTokens = 512;

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

// The slot of token `first` + lane; -1 where there is no such token.
__device__ int SlotOfLane(const RopeAppendParams& p, int64_t first) {
  const int64_t token = first + threadIdx.x % kWarpSize;
  return token >= 0 && token < p.num_tokens ? p.slot_mapping[token] : -1;
}

// Which of a warp's first 16 lanes begins a run, or -1: 16 slots that ascend by one from a multiple of
// 16. The whole warp asks.
__device__ int FindRun(int slot) {
  const int lane = threadIdx.x % kWarpSize;
  unsigned begins = __ballot_sync(kFullWarp, lane < kRun && slot >= 0 && slot % kRun == 0);
  for (; begins != 0; begins &= begins - 1) {
    const int first = __ffs(begins) - 1;
    const int first_slot = __shfl_sync(kFullWarp, slot, first);
    const bool fits = lane < first || lane >= first + kRun || slot == first_slot + lane - first;
    if (__all_sync(kFullWarp, fits)) return first;
  }
  return -1;
}

// Two dims of a token's values, as they lie in qkv.
template <typename T>
struct alignas(2 * sizeof(T)) RawPair {
  T a, b;
};

// Dims d and d + 1 of one KV head: their values over the scale, and where they lie in the cache.
struct ValueColumns {
  float scale;
  bool is_scaled;
  uint8_t* head;  // of block 0, dim d
  int64_t block_bytes;
  int block_size;

  __device__ ValueColumns(const RopeAppendParams& p, int kv_head, int d)
      : scale(p.v_scale == nullptr ? 1 : p.v_scale[kv_head]),
        is_scaled(p.v_scale != nullptr),
        head(static_cast<uint8_t*>(p.v_cache) + (int64_t{kv_head} * p.head_dim + d) * p.block_size),
        block_bytes(int64_t{p.num_kv_heads} * p.head_dim * p.block_size),
        block_size(p.block_size) {}

  __device__ uint8_t* At(int slot) const {
    return head + slot / block_size * block_bytes + ValueColumn(slot % block_size);
  }
  template <typename T>
  __device__ float2 Scaled(const RawPair<T>& raw) const {
    const float2 x = make_float2(ToFloat(raw.a), ToFloat(raw.b));
    return is_scaled ? make_float2(x.x / scale, x.y / scale) : x;
  }
  template <typename T>
  __device__ void StoreByte(const RawPair<T>& raw, int slot) const {
    const float2 x = Scaled(raw);
    const uint32_t codes = PackPair(x.x, x.y, static_cast<E4M3*>(nullptr));
    At(slot)[0] = static_cast<uint8_t>(codes);
    At(slot)[block_size] = static_cast<uint8_t>(codes >> 8);
  }
  // 16 tokens, the first at `slot`.
  template <typename T>
  __device__ void StoreRun(const RawPair<T> (&raw)[kRun], int slot) const {
    static_assert(ValueColumn(2) == 4 && ValueColumn(1) == 1 && ValueColumn(8) == 2,
                  "word q has keys 2q, 2q + 1, 2q + 8, 2q + 9");
    E4M3* const e4m3 = nullptr;
    uint32_t words[2][kRun / 4];
#pragma unroll
    for (int q = 0; q < kRun / 4; ++q) {
      const float2 a = Scaled(raw[2 * q]), b = Scaled(raw[2 * q + 1]);
      const float2 c = Scaled(raw[2 * q + 8]), e = Scaled(raw[2 * q + 9]);
      words[0][q] = PackPair(a.x, b.x, e4m3) | PackPair(c.x, e.x, e4m3) << 16;
      words[1][q] = PackPair(a.y, b.y, e4m3) | PackPair(c.y, e.y, e4m3) << 16;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      *reinterpret_cast<uint4*>(At(slot) + i * block_size) =
          make_uint4(words[i][0], words[i][1], words[i][2], words[i][3]);
    }
  }
};

template <typename T>
__device__ void LoadValues(const T* v, int64_t row_size, int64_t num_rows, RawPair<T> (&x)[kRun]) {
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    if (i < num_rows) x[i] = *reinterpret_cast<const RawPair<T>*>(v + i * row_size);
  }
}

// The values of a window's tokens, and of the rest of the run that begins in it; those of a run that
// began before it are not its own. Each thread takes a pair of dims of every token; none if -1. Loads
// go before what depends on slots.
template <typename T>
__device__ void AppendValues(const RopeAppendParams& p, int64_t window, int pair) {
  const int64_t begin = window * kRun;
  const int64_t row_size = int64_t{p.num_heads + 2 * p.num_kv_heads} * p.head_dim;
  const T* const v =
      static_cast<const T*>(p.qkv) + int64_t{p.num_heads + p.num_kv_heads} * p.head_dim + 2 * pair;
  const bool is_mine = pair >= 0 && pair < p.num_kv_heads * p.head_dim / 2;
  RawPair<T> x[kRun];
  if (is_mine) LoadValues(v + begin * row_size, row_size, p.num_tokens - begin, x);
  const int slot_before = SlotOfLane(p, begin - kRun), slot = SlotOfLane(p, begin);
  __shared__ int slots[kWarpSize];
  if (threadIdx.x < kWarpSize) slots[threadIdx.x] = slot;
  const int run_before = FindRun(slot_before), run = FindRun(slot);
  __syncthreads();
  if (!is_mine) return;

  const ValueColumns columns(p, 2 * pair / p.head_dim, 2 * pair % p.head_dim);
  if (run == 0) return columns.StoreRun(x, slots[0]);
  const int first = max(run_before, 0), end = run < 0 ? kRun : run;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    if (i >= first && i < end && slots[i] >= 0) columns.StoreByte(x[i], slots[i]);
  }
  if (run < 0) return;
  LoadValues(v + (begin + run) * row_size, row_size, kRun, x);
  columns.StoreRun(x, slots[run]);
}

// How an e4m3 cache's values are divided among thread blocks.
struct ValueBlocks {
  int num_blocks = 0;
  int per_window = 1;
  int num_pairs = 0;  // of dims, of one thread block
};

template <typename T, typename KV, int kWidth>
__global__ void __launch_bounds__(kMaxThreads, kBlocksPerSm)
    RopeAppendKernel(RopeAppendParams p, ValueBlocks values) {
  constexpr bool kE4M3 = sizeof(KV) == 1;
  if (static_cast<int>(blockIdx.x) < values.num_blocks) {
    WaitForPrevious();
    AllowNext();
    const int thread = threadIdx.x;
    const int pair = blockIdx.x % values.per_window * values.num_pairs + thread;
    if (kE4M3)
      AppendValues<T>(p, blockIdx.x / values.per_window, thread < values.num_pairs ? pair : -1);
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
  const int spans_per_half = half / kWidth;
  const int num_spans = (kE4M3 ? num_rotated : num_heads) * spans_per_half;
  int buffer = 0;  // two, so that one barrier a token is enough
  const int num_blocks = gridDim.x - values.num_blocks;
  for (int64_t t = blockIdx.x - values.num_blocks; t < p.num_tokens; t += num_blocks, buffer ^= 1) {
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
      const int64_t kv_head = head - (is_k ? p.num_heads : num_rotated);
      const float* scale = is_k ? p.k_scale : p.v_scale;
      if (scale != nullptr) {
        a = a.Divided(scale[kv_head]);
        b = b.Divided(scale[kv_head]);
      }
      const int64_t block = slot / p.block_size, block_row = slot % p.block_size;
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
  ValueBlocks values;
  if (sizeof(KV) == 1) {
    // A decode step's stores keep an SM busy, so they are spread; a prompt's do not.
    values.num_pairs =
        p.num_tokens <= kSpreadTokens ? std::min(p.head_dim / 2, num_threads) : num_threads;
    values.per_window = CeilDiv(p.num_kv_heads * p.head_dim / 2, values.num_pairs);
    values.num_blocks = CeilDiv(p.num_tokens, kRun) * values.per_window;
  }
  Launch(wide ? RopeAppendKernel<T, KV, kVec> : RopeAppendKernel<T, KV, 1>,
         values.num_blocks + std::min(p.num_tokens, kMaxBlocks), num_threads, shared_bytes, stream,
         p, values);
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
