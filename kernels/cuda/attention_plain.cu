// Attention for what the tensor core kernels do not take: f32, small head dims, other block sizes.
// Grid (head, sequence, slot): a thread block takes every kQuerySlots-th query of its sequence, its
// four warps every fourth chunk of 32 keys each; the warps' softmax states are merged in warp
// order. A key's dot product lies in one lane, so scores need no shuffles. Keys are read once per
// query head, a node's too. The order of a query's sum depends on its keys alone, not on the
// batch.
#include "kernels/cuda/attention_kernels.cuh"
#include "kernels/cuda/paged_kv.cuh"

namespace bough::cuda {
namespace {

constexpr int kWarps = 4;
// The number of queries is known on the device only; a decode's spare slots end at once.
constexpr int kQuerySlots = 32;

template <typename T, typename KV, int kHeadDim>
__global__ void PlainAttentionKernel(AttentionParams p) {
  WaitForPrevious();
  AllowNext();
  const int head = blockIdx.x, seq = blockIdx.y, kv_head = head / p.HeadsPerKv();
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int q_begin = p.cu_seqlens_q[seq], num_q = p.cu_seqlens_q[seq + 1] - q_begin;
  if (static_cast<int>(blockIdx.z) >= num_q) return;
  const PagedKv<KV> keys{p, seq, kv_head};

  __shared__ float query[kHeadDim];
  __shared__ float m[kWarps], l[kWarps], o[kWarps][kHeadDim];
  for (int i = blockIdx.z; i < num_q; i += gridDim.z) {
    const int64_t token = q_begin + i;
    const T* q = static_cast<const T*>(p.q) + token * p.q_stride + head * kHeadDim;
    for (int d = threadIdx.x; d < kHeadDim; d += blockDim.x) {
      query[d] = ToFloat(q[d]) * (p.sm_scale * p.KScale(kv_head));
    }
    __syncthreads();

    // Keys [begin, end), this query's own the last; none for a padding row.
    const int end = p.seqlens_kv[seq] - num_q + i + 1;
    const int begin = p.sliding_window > 0 ? max(0, end - p.sliding_window) : 0;
    SoftmaxState<kHeadDim> state;
    if (p.seqlens_kv[seq] > 0) {
      for (int c = keys.ChunkIndex(begin) + warp; c <= keys.ChunkIndex(end - 1); c += kWarps) {
        const auto chunk = keys[c];
        TakeIn(state, query, chunk.k, chunk, max(0, begin - chunk.first_key),
               min(chunk.num_keys, end - chunk.first_key));
      }
    }

    m[warp] = state.m;
    l[warp] = state.l;
#pragma unroll
    for (int d = 0; d < state.kPerLane; ++d) o[warp][d * kWarpSize + lane] = state.o[d];
    __syncthreads();
    if (warp == 0) {
      for (int w = 1; w < kWarps; ++w) Merge(state, m[w], l[w], o[w]);
      Store(state, p.VScale(kv_head),
            static_cast<T*>(p.o) + (token * p.num_heads + head) * kHeadDim);
    }
    __syncthreads();  // the next query overwrites shared memory
  }
}

// Calls run.template operator()<T, KV, kHeadDim>().
template <typename Run>
void Dispatch(DType dtype, DType kv_dtype, int head_dim, Run run) {
  const auto with_head_dim = [&]<typename T, typename KV>() {
    if (head_dim == 32) return run.template operator()<T, KV, 32>();
    if (head_dim == 64) return run.template operator()<T, KV, 64>();
    if (head_dim == 96) return run.template operator()<T, KV, 96>();
    if (head_dim == 128) return run.template operator()<T, KV, 128>();
    CHECK(false) << "head_dim is " << head_dim << ", CUDA takes 32, 64, 96 or 128";
  };
  const auto is = [&](DType q, DType kv) { return dtype == q && kv_dtype == kv; };
  if (is(DType::kF32, DType::kF32)) return with_head_dim.template operator()<float, float>();
  if (is(DType::kF32, DType::kBF16)) return with_head_dim.template operator()<float, BF16>();
  if (is(DType::kF32, DType::kF8E4M3)) return with_head_dim.template operator()<float, E4M3>();
  if (is(DType::kBF16, DType::kBF16)) return with_head_dim.template operator()<BF16, BF16>();
  if (is(DType::kBF16, DType::kF8E4M3)) return with_head_dim.template operator()<BF16, E4M3>();
  CHECK(false) << "q is " << Name(dtype) << " and the cache " << Name(kv_dtype)
               << ", CUDA takes f32 with f32, bf16 or f8_e4m3, or bf16 with bf16 or f8_e4m3";
}

}  // namespace

void LaunchPlainAttention(const AttentionParams& p, Stream stream) {
  CHECK(p.kv_dtype != DType::kF8E4M3 || p.block_size % 16 == 0)
      << "an e4m3 cache's blocks are of a multiple of 16 keys, not " << p.block_size;
  const dim3 grid(p.num_heads, p.num_seqs, std::clamp(p.max_seqlen_q, 1, kQuerySlots));
  Dispatch(p.dtype, p.kv_dtype, p.head_dim, [&]<typename T, typename KV, int kHeadDim>() {
    Launch(PlainAttentionKernel<T, KV, kHeadDim>, grid, kWarps * kWarpSize, 0, stream, p);
  });
}

}  // namespace bough::cuda
