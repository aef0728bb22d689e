// Gate: one thread a token; a few dozen logits each. Route: one thread block, a warp per expert
// that ballots through all pairs, so that token order needs no sort. Combine: one thread block a
// token.
#include "kernels/cuda/device.cuh"
#include "kernels/moe.h"

namespace bough::cuda {
namespace {

__global__ void TopKGateKernel(TopKGateParams p) {
  const int64_t t = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (t >= p.num_tokens) return;
  const float* logits = p.logits + t * p.num_experts;
  int32_t* ids = p.expert_ids + t * p.top_k;
  float* weights = p.expert_weights + t * p.top_k;
  for (int j = 0; j < p.top_k; ++j) {
    int best = -1;
    for (int e = 0; e < p.num_experts; ++e) {
      bool taken = false;
      for (int i = 0; i < j; ++i) taken |= ids[i] == e;
      if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
    }
    ids[j] = best;
  }
  float sum = 0;
  for (int j = 0; j < p.top_k; ++j) sum += weights[j] = expf(logits[ids[j]] - logits[ids[0]]);
  for (int j = 0; j < p.top_k; ++j) weights[j] /= sum;
}

// Calls visit(pair, rank) in the lanes whose pair goes to `expert`; rank counts the expert's
// earlier pairs. Returns their number. Called by whole warps.
template <typename Visit>
__device__ int ForEachPairOf(int expert, const MoeRouteParams& p, Visit visit) {
  const int lane = threadIdx.x % kWarpSize;
  const int num_pairs = p.num_tokens * p.top_k;
  int count = 0;
  for (int base = 0; base < num_pairs; base += kWarpSize) {
    const int pair = base + lane;
    const bool mine = pair < num_pairs && p.expert_ids[pair] == expert;
    const unsigned ballot = __ballot_sync(kFullWarp, mine);
    if (mine) visit(pair, count + __popc(ballot & ((1u << lane) - 1)));
    count += __popc(ballot);
  }
  return count;
}

__global__ void MoeRouteKernel(MoeRouteParams p) {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int num_warps = blockDim.x / kWarpSize;
  const int num_local = p.expert_end - p.expert_begin;

  for (int e = warp; e < num_local; e += num_warps) {
    const int count = ForEachPairOf(p.expert_begin + e, p, [](int, int) {});
    if (lane == 0) p.expert_offsets[e + 1] = count;
  }
  for (int pair = threadIdx.x; pair < p.num_tokens * p.top_k; pair += blockDim.x) {
    const int e = p.expert_ids[pair];
    if (e < p.expert_begin || e >= p.expert_end) p.row_of_pair[pair] = -1;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    p.expert_offsets[0] = 0;
    for (int e = 0; e < num_local; ++e) p.expert_offsets[e + 1] += p.expert_offsets[e];
  }
  __syncthreads();
  for (int e = warp; e < num_local; e += num_warps) {
    const int first_row = p.expert_offsets[e];
    ForEachPairOf(p.expert_begin + e, p, [&](int pair, int rank) {
      p.row_of_pair[pair] = first_row + rank;
      p.row_tokens[first_row + rank] = pair / p.top_k;
    });
  }
}

template <typename T>
__global__ void MoeCombineKernel(MoeCombineParams p) {
  const int64_t first_pair = int64_t{blockIdx.x} * p.top_k;
  T* out = static_cast<T*>(p.out) + int64_t{blockIdx.x} * p.hidden_size;
  for (int i = threadIdx.x; i < p.hidden_size; i += blockDim.x) {
    float sum = 0;
    for (int j = 0; j < p.top_k; ++j) {
      const int64_t row = p.row_of_pair[first_pair + j];
      if (row < 0) continue;
      sum += p.expert_weights[first_pair + j] *
             ToFloat(static_cast<const T*>(p.rows)[row * p.hidden_size + i]);
    }
    out[i] = FromFloat<T>(sum);
  }
}

}  // namespace

void TopKGate(const TopKGateParams& p, Stream stream) {
  CHECK(1 <= p.top_k && p.top_k <= p.num_experts) << p.top_k << " of " << p.num_experts;
  if (p.num_tokens == 0) return;
  constexpr int kThreads = 64;
  TopKGateKernel<<<CeilDiv(p.num_tokens, kThreads), kThreads, 0, stream>>>(p);
  CUDA_CHECK(cudaGetLastError());
}

void MoeRoute(const MoeRouteParams& p, Stream stream) {
  CHECK_LE(p.expert_begin, p.expert_end);
  MoeRouteKernel<<<1, 1024, 0, stream>>>(p);
  CUDA_CHECK(cudaGetLastError());
}

void MoeCombine(const MoeCombineParams& p, Stream stream) {
  if (p.num_tokens == 0) return;
  DispatchDType(p.dtype, "rows",
                [&]<typename T>() { MoeCombineKernel<T><<<p.num_tokens, 256, 0, stream>>>(p); });
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace bough::cuda
