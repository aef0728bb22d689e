// One thread block sorts the tiles by their number of keys: a counting sort, a warp a sequence.
#include "kernels/cuda/attention_prefill_plan.h"

#include "kernels/cuda/device.cuh"

namespace bough::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / kWarpSize;
constexpr int kBuckets = kThreads;  // by number of keys, the most first

__global__ void __launch_bounds__(kThreads, 1)
    PlanPrefillKernel(AttentionParams p, PrefillPlan plan) {
  __shared__ int starts[kBuckets];
  __shared__ int warp_sums[kWarps];
  const int thread = threadIdx.x, warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int heads = p.num_heads / p.num_kv_heads;
  WaitForPrevious();  // and no AllowNext: the prefill kernel reads the plan before it waits
  const int64_t max_keys = int64_t{p.max_blocks} * p.block_size;
  const auto for_each_tile = [&](auto do_tile) {
    for (int seq = warp; seq < p.num_seqs; seq += kWarps) {
      const int num_q = p.cu_seqlens_q[seq + 1] - p.cu_seqlens_q[seq];
      const int num_rows = num_q * heads, first_position = p.seqlens_kv[seq] - num_q;
      if (num_q <= 1) continue;
      for (int row = lane * kPrefillRows; row < num_rows; row += kWarpSize * kPrefillRows) {
        const int end = first_position + (min(row + kPrefillRows, num_rows) - 1) / heads + 1;
        const int begin =
            p.sliding_window > 0 ? first_position + row / heads + 1 - p.sliding_window : 0;
        const int num_keys = max(0, end - max(0, begin));
        const int bucket = static_cast<int>(num_keys * int64_t{kBuckets - 1} / max(max_keys, int64_t{1}));
        do_tile(kBuckets - 1 - min(bucket, kBuckets - 1), PrefillItem{seq, row, min(kPrefillRows, num_rows - row), p.cu_seqlens_q[seq],
                            first_position});
      }
    }
  };
  starts[thread] = 0;
  __syncthreads();
  for_each_tile([&](int bucket, PrefillItem) { atomicAdd(&starts[bucket], 1); });
  __syncthreads();
  const int count = starts[thread];
  int end = count;  // of this bucket and those before
#pragma unroll
  for (int i = 1; i < kWarpSize; i *= 2) {
    const int other = __shfl_up_sync(kFullWarp, end, i);
    if (lane >= i) end += other;
  }
  if (lane == kWarpSize - 1) warp_sums[warp] = end;
  __syncthreads();
  for (int w = 0; w < warp; ++w) end += warp_sums[w];
  if (thread == kThreads - 1) *plan.num_items = min(end, plan.max_items);
  starts[thread] = end - count;
  __syncthreads();
  for_each_tile([&](int bucket, PrefillItem item) {
    const int at = atomicAdd(&starts[bucket], 1);
    if (at < plan.max_items) plan.items[at] = item;
  });
}

}  // namespace

void PlanPrefill(const AttentionParams& p, const PrefillPlan& plan, Stream stream) {
  Launch(PlanPrefillKernel, dim3(1), kThreads, 0, stream, p, plan);
}

}  // namespace bough::cuda
