// Grid (head, sequence, slot): a thread block takes every kQuerySlots-th query of its sequence, its
// four warps every fourth chunk of 32 keys each; the warps' softmax states are merged in warp
// order. A key's dot product lies in one lane, so scores need no shuffles. KV heads are read once
// per query head. The order of a query's sum depends on its keys alone, not on the batch.
#include "kernels/attention.h"
#include "kernels/cuda/paged_kv.cuh"

namespace bough::cuda {
namespace {

constexpr int kWarps = 4;
// The number of queries is known on the device only; a decode's spare slots end at once.
constexpr int kQuerySlots = 32;

template <typename T, typename KV, int kHeadDim>
__global__ void PagedAttentionKernel(PagedAttentionParams p) {
  const int head = blockIdx.x, seq = blockIdx.y;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int q_begin = p.cu_seqlens_q[seq], num_q = p.cu_seqlens_q[seq + 1] - q_begin;
  const PagedKv<KV> kv = {static_cast<const KV*>(p.k_cache),
                          static_cast<const KV*>(p.v_cache),
                          p.block_tables + int64_t{seq} * p.max_blocks,
                          head / (p.num_heads / p.num_kv_heads),
                          p.num_kv_heads,
                          p.block_size,
                          kHeadDim};

  __shared__ float query[kHeadDim];
  __shared__ float m[kWarps], l[kWarps], o[kWarps][kHeadDim];
  for (int i = blockIdx.z; i < num_q; i += gridDim.z) {
    const int64_t token = q_begin + i;
    const T* q = static_cast<const T*>(p.q) + token * p.q_stride + head * kHeadDim;
    for (int d = threadIdx.x; d < kHeadDim; d += blockDim.x) query[d] = ToFloat(q[d]) * p.sm_scale;
    __syncthreads();

    // Keys [begin, end), this query's own the last.
    const int end = p.seqlens_kv[seq] - num_q + i + 1;
    const int begin = p.sliding_window > 0 ? max(0, end - p.sliding_window) : 0;
    SoftmaxState<kHeadDim> state;
    for (int c = kv.ChunkIndex(begin) + warp; c <= kv.ChunkIndex(end - 1); c += kWarps) {
      const auto chunk = kv[c];
      TakeIn(state, query, chunk.k, chunk.v, kHeadDim, max(0, begin - chunk.first_key),
             min(chunk.num_keys, end - chunk.first_key));
    }

    m[warp] = state.m;
    l[warp] = state.l;
#pragma unroll
    for (int d = 0; d < state.kPerLane; ++d) o[warp][d * kWarpSize + lane] = state.o[d];
    __syncthreads();
    if (warp == 0) {
      for (int w = 1; w < kWarps; ++w) Merge(state, m[w], l[w], o[w]);
      Store(state, static_cast<T*>(p.o) + (token * p.num_heads + head) * kHeadDim);
    }
    __syncthreads();  // the next query overwrites shared memory
  }
}

}  // namespace

void PagedAttention(const PagedAttentionParams& p, Stream stream) {
  if (p.num_seqs == 0) return;
  CheckAttentionShapes(p);
  const dim3 grid(p.num_heads, p.num_seqs, kQuerySlots);
  DispatchAttention(p.dtype, p.kv_dtype, p.head_dim, [&]<typename T, typename KV, int kHeadDim>() {
    PagedAttentionKernel<T, KV, kHeadDim><<<grid, kWarps * kWarpSize, 0, stream>>>(p);
  });
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace bough::cuda
