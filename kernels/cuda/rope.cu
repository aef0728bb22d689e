// RopeAppend. A thread block takes token after token, all heads of each: its threads hold the
// rotated pairs of eight neighbouring angles, which all heads share through shared memory. Heads of v
// go the same way, unrotated. The frequencies do not depend on any kernel before and are ready when
// the first token is.
//
// Values of an e4m3 cache go their own ways (append_values.cuh), some of them by the grid's first
// thread blocks.
#include "kernels/cuda/append_values.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/elementwise.h"

namespace bough::cuda {
namespace {

constexpr int kBlocksPerSm = 4;
constexpr int kMaxBlocks = 132 * kBlocksPerSm;  // that an H200 holds at once
constexpr int kMaxThreads = 384;

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

// Dims [i, i + kWidth) of a token's value, which lie a block's rows apart.
template <int kWidth>
__device__ void ScatterValues(const Span<kWidth>& x, int block_size, uint8_t* out) {
#pragma unroll
  for (int j = 0; j < kWidth; ++j) out[j * block_size] = E4M3(x.v[j]).__x;
}

// kIsPrompt: most tokens' values are in runs, and the others' go with their heads, since in the loop
// below ValueBytes would cost all tokens more than it saves a few. Of an e4m3 cache only.
template <typename T, typename KV, int kWidth, bool kIsPrompt>
__global__ void __launch_bounds__(kMaxThreads, kBlocksPerSm)
    RopeAppendKernel(RopeAppendParams p, ValueBlocks value_blocks) {
  constexpr bool kE4M3 = sizeof(KV) == 1;
  if (static_cast<int>(blockIdx.x) < value_blocks.num_blocks) {
    WaitForPrevious();
    AllowNext();
    if (kE4M3) AppendValues<T>(p, value_blocks);
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
  AllowNext();  // not before: decode attention copies earlier steps' keys before it waits

  const int num_rotated = p.num_heads + p.num_kv_heads;
  const int num_heads = num_rotated + p.num_kv_heads;  // of q, k and v
  const int spans_per_half = half / kWidth;
  const int num_spans = (kE4M3 && !kIsPrompt ? num_rotated : num_heads) * spans_per_half;
  int buffer = 0;  // two, so that one barrier a token is enough
  const int num_blocks = gridDim.x - value_blocks.num_blocks;
  const bool takes_values = kE4M3 && !kIsPrompt && p.num_tokens > kFewTokens;
  for (int64_t t = blockIdx.x - value_blocks.num_blocks; t < p.num_tokens;
       t += num_blocks, buffer ^= 1) {
    T* row = static_cast<T*>(p.qkv) + t * num_heads * p.head_dim;
    const auto elements = [&](int u) {
      return row + u / spans_per_half * p.head_dim + u % spans_per_half * kWidth;
    };
    Span<kWidth> a = {}, b = {};  // the first is under way while the angles are computed
    if (static_cast<int>(threadIdx.x) < num_spans) {
      a = Span<kWidth>::Load(elements(threadIdx.x));
      b = Span<kWidth>::Load(elements(threadIdx.x) + half);
    }
    ValueBytes<T> values(p, t, 0, p.num_kv_heads * p.head_dim);
    if (takes_values) values.Load();
    float2* rotation = shared + buffer * half;  // [half] cosine, sine
    const int position = p.positions[t], slot = p.slot_mapping[t];
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
      sincosf(static_cast<float>(position) * inv_freq[i], &rotation[i].y, &rotation[i].x);
    }
    const bool in_run = kE4M3 && (kIsPrompt || takes_values) && IsInRun(p, t);
    if (takes_values && !in_run && slot >= 0) values.Store(slot);
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
      if (kIsPrompt && !is_k && in_run) continue;
      const int64_t kv_head = head - (is_k ? p.num_heads : num_rotated);
      const float* scale = is_k ? p.k_scale : p.v_scale;
      if (scale != nullptr) {
        a = a.Divided(scale[kv_head]);
        b = b.Divided(scale[kv_head]);
      }
      if (kIsPrompt && !is_k) {
        const int dim = static_cast<int>(kv_head) * p.head_dim + i;
        uint8_t* const out = ValueRow(p, slot, dim) + ValueColumn(slot % p.block_size);
        ScatterValues(a, p.block_size, out);
        ScatterValues(b, p.block_size, out + half * p.block_size);
        continue;
      }
      const int64_t block = slot / p.block_size, block_row = slot % p.block_size;
      KV* cache = static_cast<KV*>(is_k ? p.k_cache : p.v_cache) + i +
                  ((block * p.num_kv_heads + kv_head) * p.block_size + block_row) * p.head_dim;
      a.Store(cache);
      b.Store(cache + half);
    }
  }
}

template <typename T, typename KV, bool kIsPrompt>
void LaunchRope(const RopeAppendParams& p, Stream stream) {
  const bool wide = p.head_dim % (2 * kVec) == 0;
  const int num_spans = (p.num_heads + 2 * p.num_kv_heads) * (p.head_dim / 2) / (wide ? kVec : 1);
  const int num_threads = std::min(kMaxThreads, CeilDiv(num_spans, kWarpSize) * kWarpSize);
  const size_t shared_bytes = p.head_dim / 2 * (2 * sizeof(float2) + sizeof(float));
  ValueBlocks value_blocks;
  if (sizeof(KV) == 1) value_blocks = DivideValues(p, num_threads);
  Launch(wide ? RopeAppendKernel<T, KV, kVec, kIsPrompt> : RopeAppendKernel<T, KV, 1, kIsPrompt>,
         value_blocks.num_blocks + std::min(p.num_tokens, kMaxBlocks), num_threads, shared_bytes,
         stream, p, value_blocks);
}

}  // namespace

void RopeAppend(const RopeAppendParams& p, Stream stream) {
  CHECK_EQ(p.head_dim % 2, 0) << "RoPE rotates pairs";
  if (p.num_tokens == 0) return;
  DispatchDType(p.dtype, "qkv", [&]<typename T>() {
    if (p.kv_dtype == DType::kF8E4M3) {
      CHECK_EQ(p.block_size % kRun, 0) << "an e4m3 cache's blocks are of a multiple of 16 keys";
      return p.num_tokens > kPromptTokens ? LaunchRope<T, E4M3, true>(p, stream)
                                          : LaunchRope<T, E4M3, false>(p, stream);
    }
    DispatchDType(p.kv_dtype, "the cache",
                  [&]<typename KV>() { LaunchRope<T, KV, false>(p, stream); });
  });
}

}  // namespace bough::cuda
