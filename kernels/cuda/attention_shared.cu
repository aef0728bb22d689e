// The shared half of bifurcated attention: keys that more than 16 query rows of a group share are read
// once for up to 128 of them, through shared memory. Each thread block takes its stretch of the
// plan's list and leaves (m, l, o) of every row in the workspace, where the decode kernel finds them.
// One H200, both halves, 8K shared and 64 own keys, 32 query and 8 KV heads of 128, bf16 cache: batch 16
// 37 us, 64 64 us, 256 196 us; without sharing, 64 take 492 us.
#include "kernels/cuda/attention_plan.cuh"
#include "kernels/cuda/attention_tile.cuh"

namespace bough::cuda {
namespace {

// The rows of a segment.
struct SharedRows {
  static constexpr int kStepKeys = 64;
  static constexpr bool kSeeAll = true;
  const AttentionParams& p;
  int num_rows, first_seq, kv_head;

  __device__ const BF16* Query(int row) const {
    const int heads = p.HeadsPerKv();
    return p.Query(first_seq + row / heads, kv_head * heads + row % heads);
  }
};

template <typename KV, int kHeadDim>
using SharedTile = AttentionTile<KV, kHeadDim, SharedRows>;

template <typename KV, int kHeadDim>
__global__ void __launch_bounds__(kDecodeThreads, kMaxTileBlocks)
    SharedAttentionKernel(AttentionParams p, Parts parts) {
  using Tile = SharedTile<KV, kHeadDim>;
  static_assert(Tile::kThreads == kDecodeThreads && Tile::kRows == kTileRows);
  extern __shared__ __align__(1024) char shared[];
  int* const plan_memory = reinterpret_cast<int*>(shared + Tile::kSharedBytes);

  WaitForPrevious();
  Groups groups(p, plan_memory);
  Plan<Work::kTiles> plan{p, groups, plan_memory + 2 * p.num_groups + 1, 1};
  groups.Load();
  plan.Make(gridDim.x);
  AllowNext();
  int at = blockIdx.x * plan.stretch;
  const int end = min(at + plan.stretch, plan.num_blocks());
  while (at < end) {
    const Segment s = plan.Take(at, end);
    Tile tile{p,
              {p, s.num_seqs * p.HeadsPerKv(), s.first_seq, s.kv_head},
              s.kv_head,
              s.key_end,
              p.block_tables + int64_t{s.table_seq} * p.max_blocks,
              shared,
              static_cast<uint32_t>(__cvta_generic_to_shared(shared))};
    __syncthreads();  // the last segment's readers of shared memory
    tile.TakeIn(s.key_begin / kBlockKeys, s.key_end / kBlockKeys, p.ScoreScale(s.kv_head));
    const int64_t slot = plan.Slot(parts, s.kv_head, s.entry, blockIdx.x);
    tile.ForEachRow([&](int row, float m, float l, auto for_each_pair) {
      float* o = parts.o + (slot + row) * kHeadDim;
      for_each_pair([&](int column, float o0, float o1) {
        *reinterpret_cast<float2*>(o + column) = {o0, o1};
      });
      parts.ml[slot + row] = {m, l};  // the same from the row's four lanes
    });
  }
}

}  // namespace

int LaunchSharedAttention(const AttentionParams& p, Stream stream) {
  int num_thread_blocks = 0;
  DispatchMmaAttention(p, [&]<typename KV, int kHeadDim>() {
    const auto kernel = SharedAttentionKernel<KV, kHeadDim>;
    const size_t plan_bytes = (Groups::NumInts(p) + Plan<Work::kTiles>::NumInts(p)) * sizeof(int);
    const size_t bytes = SharedTile<KV, kHeadDim>::kSharedBytes + plan_bytes;
    const dim3 grid = FillingGrid(kernel, kDecodeThreads, bytes, kMaxTileBlocks);
    Launch(kernel, grid, kDecodeThreads, bytes, stream, p, Parts::In(p));
    num_thread_blocks = static_cast<int>(grid.x);
  });
  return num_thread_blocks;
}

}  // namespace bough::cuda
