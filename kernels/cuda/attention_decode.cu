// Decode attention, one query a sequence: each thread block streams its stretch of the plan's list
// through registers. Where a row's keys are in several parts, the last part's thread block merges
// them: which one that is does not change the result. Keys that many rows share have been attended to
// before, by LaunchSharedAttention's kernel; their parts are merged here too.
//
// One H200, 32 query and 8 KV heads of 128, cold L2, unique KV bytes as a share of 4.6 TB/s (bf16 and
// e4m3 cache): batch 256 x 1K keys 90 and 80 %, 64 x 1K 79 and 64 %, 64 x 8K 95 and 91 %; batch 1 x 8K
// 20.5 and 16.7 us.
#include "kernels/cuda/attention_stream.cuh"

namespace bough::cuda {
namespace {

template <typename KV, int kHeadDim, int kQTiles, bool kGrouped>
struct DecodeKernel {
  using Stream = StreamKernel<KV, kHeadDim, kQTiles>;
  using Memory = typename Stream::Memory;
  static constexpr int kColumns = kHeadDim / 4;  // of 4 elements
  static constexpr int kMergeBatch = 12;

  const AttentionParams& p;
  const Parts& parts;
  const Groups& groups;
  const Plan<kGrouped ? Work::kStreams : Work::kOwn>& plan;
  const Plan<Work::kTiles>& tiles;
  Memory& memory;

  __device__ RowParts PartsOf(int kv_head, int seq) const {
    RowParts row;
    if constexpr (kGrouped) {
      const int tile = groups.TileStart(seq), first_row = (seq - tile) * p.HeadsPerKv();
      const auto set_shared = [&](const auto& of) {
        const auto takers = of.TakersOf(kv_head, tile);
        row.num_shared = takers.count;
        row.shared_slot = of.Slot(parts, kv_head, tile, takers.first) + first_row;
        row.shared_stride = of.kMaxRows;
      };
      if (groups.IsLargeTile(tile)) {
        set_shared(tiles);
      } else {
        set_shared(plan);
        row.num_streams = row.num_shared;
      }
    }
    const auto takers = plan.TakersOf(kv_head, plan.own_entry(seq));
    row.num_own = takers.count;
    row.own_slot = plan.Slot(parts, kv_head, plan.own_entry(seq), takers.first);
    row.num_streams += row.num_own;
    return row;
  }

  __device__ void CountParts(const Segment& s) const {
    if (static_cast<int>(threadIdx.x) >= s.num_seqs) return;
    const RowParts row = PartsOf(s.kv_head, s.first_seq + threadIdx.x);
    memory.num_parts[threadIdx.x] = row.size();
    memory.num_streams[threadIdx.x] = row.num_streams;
  }

  // From the warps' states in shared memory to o, or to the workspace where a row has other parts.
  __device__ void WriteRows(const Segment& s) const {
    const int heads = p.HeadsPerKv();
    const int64_t slot = plan.Slot(parts, s.kv_head, s.entry, blockIdx.x);
    for (int i = threadIdx.x; i < s.num_seqs * heads * kColumns; i += kDecodeThreads) {
      const int row = i / kColumns, column = i % kColumns * 4;
      const MergedState state = Stream::Merge(memory, row, column);
      if (memory.num_parts[row / heads] == 1) {
        const int token = p.FirstToken(s.first_seq + row / heads);
        state.Write(p.Output(token, s.kv_head * heads + row % heads) + column, p.VScale(s.kv_head));
      } else {
        *reinterpret_cast<float4*>(parts.o + (slot + row) * kHeadDim + column) = state.o;
        if (column == 0) parts.ml[slot + row] = {state.m, state.l};
      }
    }
  }

  // Counts this thread block's part of every sequence of the segment; whoever is last merges.
  __device__ void MergeWhereLast(const Segment& s) const {
    if (s.num_seqs == 1 && memory.num_parts[0] == 1) return;
    __threadfence();
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < s.num_seqs) {
      const int i = threadIdx.x;
      bool last = false;
      if (memory.num_parts[i] > 1) {
        int* counter = parts.counters + s.kv_head * p.num_seqs + s.first_seq + i;
        last = atomicAdd(counter, 1) == memory.num_streams[i] - 1;
        if (last) *counter = 0;  // for the next launch
      }
      memory.last[i] = last;
    }
    __syncthreads();
    for (int i = 0; i < s.num_seqs; ++i) {
      if (memory.last[i]) Merge(s.kv_head, s.first_seq + i);
    }
  }

  __device__ void Merge(int kv_head, int seq) const {
    const int heads = p.HeadsPerKv();
    const RowParts row = PartsOf(kv_head, seq);
    __threadfence();
    for (int i = threadIdx.x; i < heads * kColumns; i += kDecodeThreads) {
      const int head = i / kColumns, column = i % kColumns * 4;
      MergeParts<kMergeBatch>(parts, row, head, kHeadDim, column)
          .Write(p.Output(p.FirstToken(seq), kv_head * heads + head) + column, p.VScale(kv_head));
    }
  }

  // Rows that are in no stream: all their keys are in a tile, or they have none and are zero.
  __device__ void WriteOtherRows() const {
    for (int item = blockIdx.x; item < p.num_seqs * p.num_kv_heads; item += gridDim.x) {
      const int seq = item / p.num_kv_heads, kv_head = item % p.num_kv_heads;
      if (!p.HasOneQuery(seq)) continue;
      const RowParts row = PartsOf(kv_head, seq);
      if (row.num_streams > 0) continue;
      if (row.num_shared > 0) {
        Merge(kv_head, seq);
        continue;
      }
      const int heads = p.HeadsPerKv();
      for (int i = threadIdx.x; i < heads * kHeadDim / 8; i += kDecodeThreads) {
        BF16* out = p.Output(p.FirstToken(seq), kv_head * heads);
        reinterpret_cast<uint4*>(out)[i] = {0, 0, 0, 0};
      }
    }
  }
};

// num_tile_blocks: thread blocks of the kernel for large tiles, just before on the stream.
template <typename KV, int kHeadDim, int kQTiles, bool kGrouped>
__global__ void __launch_bounds__(kDecodeThreads, kQTiles == 1 ? 3 : 2)
    DecodeAttentionKernel(AttentionParams p, Parts parts, int num_tile_blocks) {
  using Kernel = DecodeKernel<KV, kHeadDim, kQTiles, kGrouped>;
  using StreamPlan = std::remove_cvref_t<decltype(Kernel::plan)>;
  extern __shared__ int plan_memory[];
  __shared__ alignas(16) typename Kernel::Memory memory;

  WaitForPrevious();
  Groups groups(p, plan_memory);
  Plan<Work::kTiles> tiles{p, groups, plan_memory + 2 * p.num_groups + 1, 1};
  StreamPlan plan{p, groups, plan_memory, 1};
  if constexpr (kGrouped) {
    plan.start = tiles.start + p.num_seqs + 1;
    groups.Load();
    tiles.Make(num_tile_blocks);
  }
  plan.Make(gridDim.x);
  AllowNext();
  const Kernel kernel{p, parts, groups, plan, tiles, memory};
  int at = blockIdx.x * plan.stretch;
  const int end = min(at + plan.stretch, plan.num_blocks());
  KeyStream<typename Kernel::Stream::S> stream;
  Segment s = {};
  bool more = at < end;
  if (more) {
    s = plan.Take(at, end);
    stream.Start(p, s);
  }
  while (more) {
    Kernel::Stream::LoadQueries(p, s, memory);
    kernel.CountParts(s);
    Kernel::Stream::TakeIn(stream, s, p.ScoreScale(s.kv_head), memory);
    // The next segment's first keys are on their way while this one is written.
    const Segment done = s;
    more = at < end;
    if (more) {
      s = plan.Take(at, end);
      stream.Start(p, s);
    }
    kernel.WriteRows(done);
    kernel.MergeWhereLast(done);
  }
  kernel.WriteOtherRows();
}

template <typename KV, int kHeadDim, int kQTiles, bool kGrouped>
void LaunchKernel(const AttentionParams& p, int num_tile_blocks, Stream stream) {
  const auto kernel = DecodeAttentionKernel<KV, kHeadDim, kQTiles, kGrouped>;
  const int num_ints = kGrouped ? Groups::NumInts(p) + Plan<Work::kTiles>::NumInts(p) +
                                      Plan<Work::kStreams>::NumInts(p)
                                : Plan<Work::kOwn>::NumInts(p);
  const size_t bytes = num_ints * sizeof(int);
  Launch(kernel, FillingGrid(kernel, kDecodeThreads, bytes, kMaxStreamBlocks), kDecodeThreads,
         bytes, stream, p, Parts::In(p), num_tile_blocks);
}

}  // namespace

int64_t DecodeWorkspaceBytes(int max_num_seqs, int num_heads, int head_dim) {
  return Parts::NumBytes(max_num_seqs, num_heads, head_dim);
}

void LaunchDecodeAttention(const AttentionParams& p, Stream stream) {
  const int num_tile_blocks = p.num_groups > 0 ? LaunchSharedAttention(p, stream) : 0;
  DispatchMmaAttention(p, [&]<typename KV, int kHeadDim>() {
    if (p.num_groups > 0) {
      LaunchKernel<KV, kHeadDim, 2, true>(p, num_tile_blocks, stream);
    } else if (p.HeadsPerKv() <= 8) {
      LaunchKernel<KV, kHeadDim, 1, false>(p, 0, stream);
    } else {
      LaunchKernel<KV, kHeadDim, 2, false>(p, 0, stream);
    }
  });
}

}  // namespace bough::cuda
