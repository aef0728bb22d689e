// Nodes that many rows share: a thread block takes its parts of the plan's tile list, up to 128 rows
// (of the node's sequences and one KV head's heads) over a range of the node's keys, and leaves their
// (m, l, o) in the workspace. Nodes lie in the cache since an earlier step, so the copies begin before
// the kernel before has ended.
#pragma once

#include "kernels/cuda/attention_merge.cuh"
#include "kernels/cuda/attention_tile.cuh"

namespace bough::cuda {

template <typename Shape>
struct NodesShared : TileShared<Shape> {
  FinishMemory finish;
};

__device__ inline KeyRange KeysOf(const WorkPart& part) {
  const int begin = part.entry.FirstBlock() + part.block_begin;
  return {.seq = part.entry.table_seq,
          .in_nodes = false,
          .kv_head = part.kv_head,
          .begin_block = begin,
          .first_block = begin,
          .end_block = begin + part.block_end - part.block_begin};
}

// A part's rows, once its producer's copies are on their way.
template <typename Consumer>
__device__ void ConsumePart(const AttentionParams& p, const WorkPlan& plan, const WorkPart& part,
                            FinishMemory& finish, Consumer& consumer) {
  const int heads = p.HeadsPerKv(), num_rows = part.NumRows(heads);
  const auto unit = [&](int row) -> const WorkUnit& {
    return plan.units[part.entry.first_unit + row / heads];
  };
  const KeyRange keys = KeysOf(part);
  const bool one_group = num_rows <= kGroupRows;
  consumer.takes_turns = !one_group;
  if (one_group && consumer.warpgroup > 0) {
    consumer.Skip(keys);
  } else {
    typename Consumer::Queries queries;
    consumer.Fetch(queries, [&](int row) -> const BF16* {
      const int token = row < num_rows ? unit(row).token : -1;
      return token >= 0 ? p.Query(token, part.kv_head * heads + row % heads) : nullptr;
    });
    consumer.Store(queries, p.ScoreScale(part.kv_head));
    int2 seen[2];
    int all_begin = keys.begin_block * kBlockKeys;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = min(consumer.Row(h), num_rows - 1);
      seen[h] = {0, min(part.entry.key_end, keys.end_block * kBlockKeys)};
      if (p.sliding_window > 0) {
        seen[h].x = unit(row).position + 1 - p.sliding_window;
        all_begin = max(all_begin, seen[h].x);
      }
    }
    if (p.sliding_window > 0) all_begin = consumer.MaxOfGroup(all_begin);
    consumer.Attend(keys, all_begin, seen[0].y, [&](int h) { return seen[h]; });
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float sum = consumer.SumOf(h), max = consumer.MaxOf(h);
      const int row = consumer.Row(h);
      if (row >= num_rows) continue;
      float* slot = plan.Slot(part.slot + row, Consumer::kHeadDim);
      float* o = slot + consumer.lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < Consumer::kHeadDim / 8; ++j) {
        __stcg(reinterpret_cast<float2*>(o + 8 * j),
               make_float2(consumer.o[4 * j + 2 * h], consumer.o[4 * j + 2 * h + 1]));
      }
      if (consumer.lane % 4 == 0) {
        __stcg(reinterpret_cast<float2*>(slot + Consumer::kHeadDim), make_float2(max, sum));
      }
    }
  }
  FinishPart(
      p, plan, part, finish, threadIdx.x, 2 * kWarpgroupSize,
      [&](int i) -> const WorkUnit& { return plan.units[part.entry.first_unit + i]; },
      [] { SyncThreads(3, 2 * kWarpgroupSize); });
}

template <typename Shape, bool kTwoLevel>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    NodesKernel(const __grid_constant__ CUtensorMap k_map,
                const __grid_constant__ CUtensorMap v_map,
                const __grid_constant__ AttentionParams p, const __grid_constant__ WorkPlan plan) {
  static_assert(Shape::kRows == kTileRows);
  extern __shared__ __align__(1024) uint8_t shared_bytes[];
  auto& shared = *reinterpret_cast<NodesShared<Shape>*>(shared_bytes);
  constexpr int kConsumerThreads = Shape::kConsumers * kWarpgroupSize;
  if (threadIdx.x == kConsumerThreads) {
    PrefetchTensorMap(&k_map);
    PrefetchTensorMap(&v_map);
    shared.Init();
  }
  __syncthreads();
  WorkWalk walk(plan, kTileWork);
  WorkPart part;
  if (threadIdx.x >= kConsumerThreads) {
    LendRegisters<Shape>();
    Produce<Shape>(p, shared, k_map, v_map, [&](KeyRange& keys) {
      if (!walk.Next(part)) return false;
      keys = KeysOf(part);
      return true;
    });
    WaitForPrevious();
    AllowNext();
  } else {
    BorrowRegisters<Shape>();
    WaitForPrevious();
    AllowNext();
    TileConsumer<Shape, kTwoLevel> consumer{shared};
    consumer.BeginTurns();
    while (walk.Next(part)) ConsumePart(p, plan, part, shared.finish, consumer);
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
