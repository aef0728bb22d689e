// Decode attention, one query a sequence: each thread block streams its stretch of the plan's list
// through registers. Where a row's keys are in several parts, the last part's thread block merges
// them: which one that is does not change the result.
//
// Measured on an H200 at 32 query and 8 KV heads of 128: see bench/kernels_attention.cc.
#include "kernels/cuda/attention_stream.cuh"

namespace bough::cuda {
namespace {

constexpr int kMaxBlocksPerSm = 4;  // of kStreamRows slots each: NumPartSlots

// Counts this thread block's part of the segment; whoever is last merges.
template <int kBatch, typename Kernel>
__device__ void MergeIfLast(const Plan<false>& plan, const Parts& parts, const Segment& s,
                            float v_scale, typename Kernel::Memory& memory) {
  const int num_parts = memory.num_parts[0];
  if (num_parts == 1) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int* counter = parts.counters + s.kv_head * plan.p.num_seqs + s.first_seq;
    memory.last[0] = atomicAdd(counter, 1) == num_parts - 1;
    if (memory.last[0]) *counter = 0;  // for the next launch
  }
  __syncthreads();
  if (!memory.last[0]) return;
  __threadfence();
  for (int i = threadIdx.x; i < plan.p.HeadsPerKv() * Kernel::kColumns; i += kDecodeThreads) {
    MergeParts<kBatch>(plan, parts, s.kv_head, s.first_seq, i / Kernel::kColumns,
                       i % Kernel::kColumns * 4, v_scale);
  }
}

template <typename KV, int kHeadDim, int kQTiles>
__global__ void __launch_bounds__(kDecodeThreads, kQTiles == 1 ? 3 : 2)
    DecodeAttentionKernel(AttentionParams p, Parts parts) {
  using Kernel = StreamKernel<KV, kHeadDim, kQTiles>;
  extern __shared__ int plan_memory[];
  __shared__ alignas(16) typename Kernel::Memory memory;

  WaitForPrevious();
  Plan<false> plan(p, plan_memory);
  plan.Make();
  AllowNext();
  int at = blockIdx.x * plan.stretch;
  const int end = min(at + plan.stretch, plan.total_cost());
  KeyStream<typename Kernel::S> stream;
  Segment s;
  bool more = plan.Next(at, end, s);
  if (more) stream.Start(p, s);
  while (more) {
    Kernel::LoadQueries(plan, s, memory);
    const float k_scale = p.k_scale != nullptr ? p.k_scale[s.kv_head] : 1;
    const float v_scale = p.v_scale != nullptr ? p.v_scale[s.kv_head] : 1;
    Kernel::TakeIn(stream, s, p.sm_scale * kLog2E * k_scale, memory);
    // The next segment's first keys are on their way while this one is written.
    const Segment done = s;
    more = plan.Next(at, end, s);
    if (more) stream.Start(p, s);
    Kernel::WriteRows(plan, parts, done, v_scale, memory);
    MergeIfLast<12, Kernel>(plan, parts, done, v_scale, memory);
  }
  plan.WriteEmptyRows();
}

}  // namespace

int64_t DecodeWorkspaceBytes(int max_num_seqs, int num_heads, int head_dim) {
  const int64_t slot_bytes = head_dim * sizeof(float) + sizeof(float2);
  return kCounterBytes + NumPartSlots(max_num_seqs, num_heads) * slot_bytes;
}

void LaunchDecodeAttention(const AttentionParams& p, Stream stream) {
  CHECK_LE(p.num_seqs, kMaxDecodeSeqs);
  CHECK_LE(p.num_seqs * p.num_kv_heads, kMaxCounters);
  CHECK(p.workspace != nullptr) << "decode attention needs AttentionWorkspaceBytes of workspace";
  const Parts parts = LayOutParts(p.workspace, p.num_seqs, p.num_heads, p.head_dim);
  const size_t bytes = Plan<false>::SharedBytes(p);
  DispatchMmaAttention(p, [&]<typename KV, int kHeadDim>() {
    const auto kernel = p.HeadsPerKv() <= 8 ? DecodeAttentionKernel<KV, kHeadDim, 1>
                                            : DecodeAttentionKernel<KV, kHeadDim, 2>;
    Launch(kernel, FillingGrid(kernel, kDecodeThreads, bytes, kMaxBlocksPerSm), kDecodeThreads,
           bytes, stream, p, parts);
  });
}

}  // namespace bough::cuda
