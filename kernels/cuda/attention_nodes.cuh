// Nodes that many rows share: a thread block takes its parts of the plan's tile list, up to 128 rows
// (of the node's sequences and one KV head's heads) over a range of the node's keys, and leaves their
// (m, l, o) in the workspace. Nodes lie in the cache since an earlier step, so the copies begin before
// the kernel before has ended.
#pragma once

#include "kernels/cuda/attention_merge.cuh"
#include "kernels/cuda/attention_tile.cuh"

namespace bough::cuda {

struct NodePart {
  WorkPart part;
  KeyRange keys;
};

template <typename Shape>
struct NodesShared : TileShared<Shape, NodePart> {
  FinishMemory finish;
};

// The parts of one thread block.
class NodeSchedule {
 public:
  __device__ explicit NodeSchedule(const WorkPlan& plan) : walk_(plan, kTileWork) {}

  __device__ bool Next(NodePart& next) {
    if (!walk_.Next(next.part)) return false;
    const int begin = next.part.entry.FirstBlock() + next.part.block_begin;
    next.keys = {.seq = next.part.entry.table_seq,
                 .in_nodes = false,
                 .kv_head = next.part.kv_head,
                 .begin_block = begin,
                 .first_block = begin,
                 .end_block = begin + next.part.block_end - next.part.block_begin};
    return true;
  }

 private:
  WorkWalk walk_;
};

// The rows' (m, l, o) into the part's slot.
template <typename Consumer>
__device__ void WriteSlot(const WorkPlan& plan, const WorkPart& part, int num_rows,
                          const Consumer& consumer) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float sum = consumer.SumOf(h), max = consumer.MaxOf(h);
    const int row = consumer.Row(h);
    float* const slot = plan.Slot(part.slot + row, Consumer::kHeadDim);
    consumer.WriteFloats(h, slot, row < num_rows);
    if (row < num_rows && consumer.lane % 4 == 0) {
      __stcg(reinterpret_cast<float2*>(slot + Consumer::kHeadDim), make_float2(max, sum));
    }
  }
}

// A consumer warpgroup's part. before_queries() returns once the kernel before has written them.
template <typename Consumer, typename Before>
__device__ void ConsumeParts(const AttentionParams& p, const WorkPlan& plan, FinishMemory& finish,
                             Consumer& consumer, Before before_queries) {
  const HeadDivider heads(p.HeadsPerKv());
  ItemReader<NodePart> reader{consumer.shared.ring};
  int slot;
  for (const NodePart* node; (node = reader.Next(slot)) != nullptr; reader.GiveBack(slot)) {
    const WorkPart& part = node->part;
    const WorkUnit* const units = plan.units + part.entry.first_unit;
    const int num_rows = part.NumRows(heads.heads);
    // One warpgroup's rows: the other lets the keys pass.
    consumer.takes_turns = num_rows > kGroupRows;
    if (!consumer.takes_turns && consumer.warpgroup > 0) {
      before_queries();
      consumer.Skip(node->keys);
    } else {
      before_queries();
      consumer.StartFetch(p, [&](int row) -> const BF16* {
        const int unit = heads.Unit(row);
        const int token = row < num_rows ? __ldg(&units[unit].token) : -1;
        const int head = part.kv_head * heads.heads + row - unit * heads.heads;
        return token >= 0 ? p.Query(token, head) : nullptr;
      });
      consumer.FinishFetch(p.ScoreScale(part.kv_head));
      const int key_end = min(part.entry.key_end, node->keys.end_block * kBlockKeys);
      const auto see = [&](int h) {
        const int unit = heads.Unit(min(consumer.Row(h), num_rows - 1));
        const int begin = p.sliding_window > 0 ? units[unit].position + 1 - p.sliding_window : 0;
        return int2{begin, key_end};
      };
      // With a window each tile is masked: positions of other rows are not at hand.
      const int all_begin = p.sliding_window > 0 ? key_end : 0;
      consumer.Attend(node->keys, all_begin, key_end, see);
      WriteSlot(plan, part, num_rows, consumer);
    }
    FinishPart(
        p, plan, part, finish, threadIdx.x, 2 * kWarpgroupSize,
        [&](int i) -> const WorkUnit& { return units[i]; },
        [] { SyncThreads(kBothGroups, 2 * kWarpgroupSize); });
  }
}

template <typename Shape, bool kTwoLevel>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    NodesKernel(const __grid_constant__ CUtensorMap k_map,
                const __grid_constant__ CUtensorMap v_map,
                const __grid_constant__ AttentionParams p, const __grid_constant__ WorkPlan plan) {
  static_assert(Shape::kRows == kTileRows);
  using Shared = NodesShared<Shape>;
  extern __shared__ __align__(1024) uint8_t shared_bytes[];
  auto& shared = *reinterpret_cast<Shared*>(shared_bytes);
  constexpr int kConsumerThreads = Shape::kConsumers * kWarpgroupSize;
  if (threadIdx.x == kConsumerThreads) {
    PrefetchTensorMap(&k_map);
    PrefetchTensorMap(&v_map);
    shared.Init();
  }
  __syncthreads();
  if (threadIdx.x >= kConsumerThreads) {
    LendRegisters<Shape>();
    NodeSchedule schedule(plan);
    Produce<Shape>(p, static_cast<TileShared<Shape, NodePart>&>(shared), k_map, v_map,
                   [&](NodePart& part) { return schedule.Next(part); }, [] {});
    WaitForPrevious();
    AllowNext();
  } else {
    BorrowRegisters<Shape>();
    TileConsumer<Shape, Shared, kTwoLevel> consumer{shared};
    consumer.BeginTurns();
    ConsumeParts(p, plan, shared.finish, consumer, [] {
      WaitForPrevious();
      AllowNext();
    });
    WaitForPrevious();  // a thread block without parts too
  }
}

template <typename Shape, bool kTwoLevel = Shape::kE4M3>
void LaunchNodes(const AttentionParams& p, const WorkPlan& plan, Stream stream) {
  constexpr auto kKernel = NodesKernel<Shape, kTwoLevel>;
  AllowSharedMemory<kKernel, sizeof(NodesShared<Shape>)>();
  Launch(kKernel, dim3(TileAttentionGrid(p)), Shape::kThreads, sizeof(NodesShared<Shape>), stream,
         KeyMap<Shape>(p), ValueMap<Shape>(p), p, plan);
}

}  // namespace bough::cuda
