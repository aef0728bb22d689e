// Route: which row a pair gets depends on all pairs before it, so each thread block derives that for
// its own tokens from all ids (4 bytes a pair, out of L2) and then copies their rows: one launch, no
// thread block waits for another. Few pairs: a thread block a token. Many: one an SM, each with a
// range of tokens. Combine: one thread block a token.
#include "kernels/cuda/rows.cuh"
#include "kernels/moe.h"

namespace bough::cuda {
namespace {

constexpr int kMaxLocalExperts = 64;
constexpr int kMaxTopK = 64;

__device__ bool IsLocal(const MoeRouteParams& p, int expert) {
  return p.expert_begin <= expert && expert < p.expert_end;
}

using Unit = uint4;  // rows are copied in these

// Unit i of a token to its rows.
__device__ void StoreUnit(const MoeRouteParams& p, int64_t i, const int32_t* rows_of_token,
                          const Unit& unit) {
  for (int j = 0; j < p.top_k; ++j) {
    if (rows_of_token[j] < 0) continue;
    static_cast<Unit*>(p.rows)[rows_of_token[j] * (p.row_bytes / int64_t{sizeof(Unit)}) + i] = unit;
  }
}

// By the threads of a group, `rank` of `size`.
__device__ void CopyScale(const MoeRouteParams& p, int64_t t, const int32_t* rows_of_token,
                          int rank, int size) {
  if (p.x_scale == nullptr) return;
  for (int j = rank; j < p.top_k; j += size) {
    if (rows_of_token[j] >= 0) p.row_scale[rows_of_token[j]] = p.x_scale[t];
  }
}

// The lanes of a warp count the pairs q in [0, num_pairs) for which is_in(q); all get the sum.
template <typename IsIn>
__device__ int CountPairs(int num_pairs, IsIn is_in) {
  int count = 0;
#pragma unroll 4
  for (int q = threadIdx.x % kWarpSize; q < num_pairs; q += kWarpSize) count += is_in(q);
  return WarpReduce(count, Add{});
}

constexpr int kMaxFewPairs = 1024;
constexpr int kFewThreads = 256;

// Thread block t has token t. A warp a pair: its row is the number of pairs that stand before it.
__global__ void __launch_bounds__(kFewThreads) RouteFewKernel(MoeRouteParams p) {
  __shared__ int32_t ids[kMaxFewPairs];
  __shared__ int32_t rows_of_token[kMaxTopK];
  const int warp = threadIdx.x / kWarpSize, num_warps = blockDim.x / kWarpSize;
  const bool is_first_lane = threadIdx.x % kWarpSize == 0;
  AllowNext();
  WaitForPrevious();
  const int t = blockIdx.x, num_pairs = p.num_tokens * p.top_k;
  const int64_t num_units = p.row_bytes / sizeof(Unit);
  const Unit* x = static_cast<const Unit*>(p.x) + t * num_units;
  Unit first = {};  // under way while the rows are derived
  if (t < p.num_tokens && threadIdx.x < num_units) first = x[threadIdx.x];
  for (int q = threadIdx.x; q < num_pairs; q += blockDim.x) ids[q] = p.expert_ids[q];
  __syncthreads();

  if (t == 0) {
    for (int e = warp; e <= p.expert_end - p.expert_begin; e += num_warps) {
      const int count = CountPairs(num_pairs, [&](int q) {
        return p.expert_begin <= ids[q] && ids[q] < p.expert_begin + e;
      });
      if (is_first_lane) p.expert_offsets[e] = count;
    }
  }
  if (t >= p.num_tokens) return;
  for (int j = warp; j < p.top_k; j += num_warps) {
    const int pair = t * p.top_k + j, expert = ids[pair];
    const int rank = CountPairs(num_pairs, [&](int q) {
      return (p.expert_begin <= ids[q] && ids[q] < expert) || (ids[q] == expert && q < pair);
    });
    if (is_first_lane) {
      rows_of_token[j] = p.row_of_pair[pair] = IsLocal(p, expert) ? rank : -1;
    }
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < num_units; i += blockDim.x) {
    const Unit unit = i < blockDim.x ? first : x[i];
    StoreUnit(p, i, rows_of_token, unit);
  }
  CopyScale(p, t, rows_of_token, threadIdx.x, blockDim.x);
}

constexpr int kManyThreads = 1024;
constexpr int kManyBlocks = 132;      // SMs of an H200
constexpr int kMaxRangePairs = 2048;  // of a thread block
constexpr int kUnitsAtOnce = 8;       // of a row that a lane has under way

// Thread block b has tokens [b, b + 1) * tokens_per_block.
__global__ void __launch_bounds__(kManyThreads)
    RouteManyKernel(MoeRouteParams p, int tokens_per_block) {
  // Pairs before the range, and in or after it, by expert. A lane has counters of its own: no two
  // lanes of a warp meet in one, nor in one memory bank.
  __shared__ int counters[2][kMaxLocalExperts][kWarpSize];
  __shared__ int num_before[kMaxLocalExperts], num_all[kMaxLocalExperts];
  __shared__ int first_row[kMaxLocalExperts];  // of the range's pairs
  __shared__ int32_t ids[kMaxRangePairs], rows[kMaxRangePairs];
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int num_warps = blockDim.x / kWarpSize;
  const int num_local = p.expert_end - p.expert_begin, num_pairs = p.num_tokens * p.top_k;
  const int begin = blockIdx.x * tokens_per_block * p.top_k;
  const int end = min(begin + tokens_per_block * p.top_k, num_pairs);
  for (int i = threadIdx.x; i < num_local * kWarpSize; i += blockDim.x) {
    counters[0][i / kWarpSize][i % kWarpSize] = counters[1][i / kWarpSize][i % kWarpSize] = 0;
  }
  AllowNext();
  WaitForPrevious();
  __syncthreads();

#pragma unroll 8
  for (int q = threadIdx.x; q < num_pairs; q += blockDim.x) {
    const int expert = p.expert_ids[q];
    if (IsLocal(p, expert)) atomicAdd(&counters[q >= begin][expert - p.expert_begin][lane], 1);
    if (begin <= q && q < end) {
      ids[q - begin] = expert;
      if (!IsLocal(p, expert)) rows[q - begin] = p.row_of_pair[q] = -1;
    }
  }
  __syncthreads();
  for (int e = warp; e < num_local; e += num_warps) {
    const int before = WarpReduce(counters[0][e][lane], Add{});
    const int after = WarpReduce(counters[1][e][lane], Add{});
    if (lane == 0) {
      num_before[e] = before;
      num_all[e] = before + after;
    }
  }
  __syncthreads();
  for (int e = threadIdx.x; e <= num_local; e += blockDim.x) {
    int offset = 0;
    for (int i = 0; i < e; ++i) offset += num_all[i];
    if (e < num_local) first_row[e] = offset + num_before[e];
    if (blockIdx.x == 0) p.expert_offsets[e] = offset;
  }
  __syncthreads();
  // A warp an expert: its pairs of the range in order.
  for (int e = warp; e < num_local; e += num_warps) {
    int row = first_row[e];
    for (int base = 0; base < end - begin; base += kWarpSize) {
      const int i = base + lane;
      const bool mine = i < end - begin && ids[i] == p.expert_begin + e;
      const unsigned ballot = __ballot_sync(kFullWarp, mine);
      if (mine) {
        rows[i] = p.row_of_pair[begin + i] = row + __popc(ballot & ((1u << lane) - 1));
      }
      row += __popc(ballot);
    }
  }
  __syncthreads();
  for (int i = warp; i * p.top_k < end - begin; i += num_warps) {
    const int64_t t = begin / p.top_k + i, num_units = p.row_bytes / sizeof(Unit);
    const Unit* x = static_cast<const Unit*>(p.x) + t * num_units;
    for (int64_t base = lane; base < num_units; base += kUnitsAtOnce * kWarpSize) {
      Unit units[kUnitsAtOnce];
#pragma unroll
      for (int k = 0; k < kUnitsAtOnce; ++k) {
        if (base + k * kWarpSize < num_units) units[k] = x[base + k * kWarpSize];
      }
#pragma unroll
      for (int k = 0; k < kUnitsAtOnce; ++k) {
        const int64_t u = base + k * kWarpSize;
        if (u < num_units) StoreUnit(p, u, rows + i * p.top_k, units[k]);
      }
    }
    CopyScale(p, t, rows + i * p.top_k, lane, kWarpSize);
  }
}

template <typename T>
__global__ void MoeCombineKernel(MoeCombineParams p) {
  AllowNext();
  WaitForPrevious();
  const int64_t t = blockIdx.x;
  T* out = static_cast<T*>(p.out) + t * p.hidden_size;
  for (int i = threadIdx.x * kVec; i < p.hidden_size; i += blockDim.x * kVec) {
    StoreVec(out + i, SumExpertRows(static_cast<const T*>(p.rows), p.hidden_size,
                                    p.row_of_pair + t * p.top_k, p.expert_weights + t * p.top_k,
                                    p.top_k, i));
  }
}

}  // namespace

void MoeRoute(const MoeRouteParams& p, Stream stream) {
  const int num_local = p.expert_end - p.expert_begin;
  CHECK(0 <= num_local && num_local <= kMaxLocalExperts) << num_local << " experts";
  CHECK(1 <= p.top_k && p.top_k <= kMaxTopK) << "top_k is " << p.top_k;
  CHECK_EQ(p.row_bytes % sizeof(Unit), 0u);
  if (p.num_tokens * p.top_k <= kMaxFewPairs) {
    // Without tokens too: the offsets are written.
    Launch(RouteFewKernel, std::max(p.num_tokens, 1), kFewThreads, 0, stream, p);
    return;
  }
  const int tokens_per_block =
      std::min(CeilDiv(p.num_tokens, kManyBlocks), kMaxRangePairs / p.top_k);
  Launch(RouteManyKernel, CeilDiv(p.num_tokens, tokens_per_block), kManyThreads, 0, stream, p,
         tokens_per_block);
}

void MoeCombine(const MoeCombineParams& p, Stream stream) {
  if (p.num_tokens == 0) return;
  CHECK_EQ(p.hidden_size % kVec, 0);
  DispatchDType(p.dtype, "rows", [&]<typename T>() {
    Launch(MoeCombineKernel<T>, p.num_tokens, 256, 0, stream, p);
  });
}

}  // namespace bough::cuda
