// Bifurcated attention: a group's shared keys are read once for up to 128 query rows, through shared
// memory (attention_tile.cuh); own keys, and keys that at most 16 rows share, stream through
// registers (attention_stream.cuh). Both ways mix on every SM: the one waits for tensor cores, the
// other for memory. Each row's parts meet in the workspace; when all thread blocks have passed a
// barrier, which they may wait for since the grid fits the GPU, they merge the rows among them.
#include "kernels/cuda/attention_stream.cuh"
#include "kernels/cuda/attention_tile.cuh"

namespace bough::cuda {
namespace {

constexpr int kMaxBlocksPerSm = 2;  // of kTileRows slots each: NumPartSlots

// The rows of a segment of shared keys.
struct SharedRows {
  static constexpr int kStepKeys = 32;
  static constexpr bool kSeeAll = true;
  const AttentionParams& p;
  int num_rows, first_seq, kv_head;

  __device__ const BF16* Query(int row) const {
    const int heads = p.HeadsPerKv();
    return static_cast<const BF16*>(p.q) + int64_t{first_seq + row / heads} * p.q_stride +
           (kv_head * heads + row % heads) * p.head_dim;
  }
};

// Returns when all thread blocks of the grid have called it. barrier[0] counts them, barrier[1] the
// barriers passed.
__device__ void GridBarrier(int* barrier) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    volatile int* const generation = barrier + 1;
    const int before = *generation;
    __threadfence();
    if (atomicAdd(barrier, 1) == static_cast<int>(gridDim.x) - 1) {
      barrier[0] = 0;
      __threadfence();
      *generation = before + 1;
    } else {
      while (*generation == before) {
      }
    }
    __threadfence();
  }
  __syncthreads();
}

// A segment of shared keys for more than kStreamRows rows, whose (m, l, o) go to ml and o. Not inlined:
// its registers are its own then, and none of its sums are spilled in its loop.
template <typename KV, int kHeadDim>
__device__ __noinline__ void RunTile(const AttentionParams& p, const Segment& s, float* o,
                                     float2* ml, char* shared) {
  using Tile = AttentionTile<KV, kHeadDim, SharedRows>;
  const SharedRows rows = {p, s.num_seqs * p.HeadsPerKv(), s.first_seq, s.kv_head};
  Tile tile{p,
            rows,
            s.kv_head,
            s.key_end,
            p.block_tables + int64_t{s.table_seq} * p.max_blocks,
            shared,
            static_cast<uint32_t>(__cvta_generic_to_shared(shared))};
  const float k_scale = p.k_scale != nullptr ? p.k_scale[s.kv_head] : 1;
  tile.TakeIn(s.key_begin / kBlockKeys, s.key_end / kBlockKeys, p.sm_scale * kLog2E * k_scale);
  tile.ForEachRow([&](int row, float m, float l, auto for_each_pair) {
    for_each_pair([&](int column, float o0, float o1) {
      *reinterpret_cast<float2*>(o + row * kHeadDim + column) = {o0, o1};
    });
    ml[row] = {m, l};  // the same from the row's four lanes
  });
}

template <typename KV, int kHeadDim>
struct BifurcatedKernel {
  using Stream = StreamKernel<KV, kHeadDim, kStreamRows / 8>;
  using Tile = AttentionTile<KV, kHeadDim, SharedRows>;
  static_assert(Tile::kThreads == kDecodeThreads && Tile::kRows == kTileRows);
  static constexpr size_t kBytes = Tile::kSharedBytes > sizeof(typename Stream::Memory)
                                       ? Tile::kSharedBytes
                                       : sizeof(typename Stream::Memory);

  const AttentionParams& p;
  const Plan<true>& plan;
  const Parts& parts;
  char* const shared;  // [kBytes]

  __device__ float Scale(int kv_head) const {
    return p.sm_scale * kLog2E * (p.k_scale != nullptr ? p.k_scale[kv_head] : 1);
  }
  __device__ float VScale(int kv_head) const {
    return p.v_scale != nullptr ? p.v_scale[kv_head] : 1;
  }

  __device__ void RunStream(const Segment& s) const {
    auto& memory = *reinterpret_cast<typename Stream::Memory*>(shared);
    KeyStream<typename Stream::S> stream;
    stream.Start(p, s);
    Stream::LoadQueries(plan, s, memory);
    Stream::TakeIn(stream, s, Scale(s.kv_head), memory);
    Stream::WriteRows(plan, parts, s, VScale(s.kv_head), memory);
  }

  // The rows that are not written yet, spread over the grid: kHeadDim / 4 threads a row.
  __device__ void MergeRows() const {
    constexpr int kColumns = kHeadDim / 4, kRowsAtOnce = kDecodeThreads / kColumns;
    const int heads = p.HeadsPerKv();
    for (int row = blockIdx.x * kRowsAtOnce + threadIdx.x / kColumns;
         row < p.num_seqs * p.num_heads; row += gridDim.x * kRowsAtOnce) {
      const int seq = row / p.num_heads, head = row % p.num_heads, kv_head = head / heads;
      // RunStream has written rows of a single part; RunTile leaves that to this.
      const int num_shared = plan.SharedTakers(kv_head, seq).count;
      const int num_parts = num_shared + plan.OwnTakers(kv_head, seq).count;
      const bool tile = num_shared > 0 && plan.IsTile(plan.TileStart(seq));
      if (num_parts == 0 || (num_parts == 1 && !tile)) continue;
      MergeParts<12>(plan, parts, kv_head, seq, head % heads, threadIdx.x % kColumns * 4,
                     VScale(kv_head));
    }
  }
};

template <typename KV, int kHeadDim>
__global__ void __launch_bounds__(kDecodeThreads, kMaxBlocksPerSm)
    BifurcatedAttentionKernel(const __grid_constant__ AttentionParams p, const Parts parts) {
  using Kernel = BifurcatedKernel<KV, kHeadDim>;
  extern __shared__ __align__(1024) char shared[];
  __shared__ Segment s;

  WaitForPrevious();
  Plan<true> plan(p, reinterpret_cast<int*>(shared + Kernel::kBytes));
  plan.Make();
  AllowNext();
  const Kernel kernel{p, plan, parts, shared};
  int at = blockIdx.x * plan.stretch;
  const int end = min(at + plan.stretch, plan.total_cost());
  for (Segment next; plan.Next(at, end, next);) {
    __syncthreads();  // the last segment's readers of shared memory
    if (threadIdx.x == 0) s = next;
    __syncthreads();
    if (s.tile) {
      const int64_t slot = plan.Slot(s.kv_head, s.entry, blockIdx.x);
      RunTile<KV, kHeadDim>(p, s, parts.o + slot * kHeadDim, parts.ml + slot, shared);
    } else {
      kernel.RunStream(s);
    }
  }
  plan.WriteEmptyRows();
  GridBarrier(parts.barrier);
  kernel.MergeRows();
}

}  // namespace

void LaunchBifurcatedAttention(const AttentionParams& p, Stream stream) {
  CHECK_LE(p.num_seqs, kMaxDecodeSeqs);
  CHECK(p.workspace != nullptr) << "decode attention needs AttentionWorkspaceBytes of workspace";
  const Parts parts = LayOutParts(p.workspace, p.num_seqs, p.num_heads, p.head_dim);
  DispatchMmaAttention(p, [&]<typename KV, int kHeadDim>() {
    const auto kernel = BifurcatedAttentionKernel<KV, kHeadDim>;
    const size_t bytes = BifurcatedKernel<KV, kHeadDim>::kBytes + Plan<true>::SharedBytes(p);
    Launch(kernel, FillingGrid(kernel, kDecodeThreads, bytes, kMaxBlocksPerSm), kDecodeThreads,
           bytes, stream, p, parts);
  });
}

}  // namespace bough::cuda
