// The prefill kernel: a thread block takes tiles of 128 query rows of one KV head, (query, head) pairs
// with the query outermost, so that heads which share keys read them once.
#pragma once

#include "kernels/cuda/attention_prefill_plan.h"
#include "kernels/cuda/attention_tile.cuh"

namespace bough::cuda {

// Rows [first_row, first_row + num_rows) of one sequence and KV head.
struct PrefillTile {
  KeyRange keys;
  int first_row, num_rows;
  int first_token, first_position;  // of the sequence's first query
};

// The tiles of one thread block, the same for its producer and its warpgroups. The plan has those with
// most keys first; thread blocks take them in turn, every second time in the other direction, so that
// all get about as much.
class PrefillSchedule {
 public:
  __device__ PrefillSchedule(const AttentionParams& p, const PrefillPlan& plan)
      : p_(p), items_(plan.items), num_tiles_(*plan.num_items * p.num_kv_heads) {}

  __device__ bool Next(PrefillTile& tile) {
    const int in_turn = turn_ % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
    const int index = turn_ * gridDim.x + in_turn;
    if (turn_ * static_cast<int>(gridDim.x) >= num_tiles_) return false;
    ++turn_;
    if (index >= num_tiles_) return false;  // only in the last turn
    const PrefillItem item = items_[index / p_.num_kv_heads];
    const int seq = item.seq, heads = p_.HeadsPerKv();
    const int num_q = p_.cu_seqlens_q[seq + 1] - p_.cu_seqlens_q[seq];
    tile.first_row = item.first_row;
    tile.num_rows = min(kPrefillRows, num_q * heads - item.first_row);
    tile.first_token = p_.cu_seqlens_q[seq];
    tile.first_position = p_.seqlens_kv[seq] - num_q;
    tile.keys.seq = seq;
    tile.keys.in_nodes = p_.num_nodes > 0;
    tile.keys.kv_head = index % p_.num_kv_heads;
    const int key_end = tile.first_position + (item.first_row + tile.num_rows - 1) / heads + 1;
    const int key_begin = FirstKey(tile.first_position + item.first_row / heads + 1);
    tile.keys.begin_block = key_begin / kTileKeys * (kTileKeys / kBlockKeys);
    tile.keys.first_block = key_begin / kBlockKeys;
    tile.keys.end_block = CeilDiv(max(0, key_end), kBlockKeys);
    return true;
  }

  // Of a query that sees keys before `end`.
  __device__ int FirstKey(int end) const {
    return p_.sliding_window > 0 ? max(0, end - p_.sliding_window) : 0;
  }

 private:
  const AttentionParams& p_;
  const PrefillItem* items_;
  int num_tiles_, turn_ = 0;
};

// Everything about a tile once its producer's copies are on their way.
template <typename Consumer>
__device__ void ConsumeTile(const AttentionParams& p, const PrefillSchedule& schedule,
                            const PrefillTile& tile, Consumer& consumer) {
  const int heads = p.HeadsPerKv(), kv_head = tile.keys.kv_head;
  const auto token = [&](int row) { return tile.first_token + (tile.first_row + row) / heads; };
  const auto head = [&](int row) { return kv_head * heads + (tile.first_row + row) % heads; };
  const auto key_end = [&](int row) {  // rows past the last: as the last
    row = min(row, tile.num_rows - 1);
    return tile.first_position + (tile.first_row + row) / heads + 1;
  };
  consumer.LoadQueries(p.ScoreScale(kv_head), [&](int row) {
    return row < tile.num_rows ? p.Query(token(row), head(row)) : nullptr;
  });
  int2 seen[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int end = key_end(consumer.Row(h));
    seen[h] = {schedule.FirstKey(end), end};
  }
  const int group_row = consumer.warpgroup * kGroupRows;
  consumer.Attend(tile.keys, schedule.FirstKey(key_end(group_row + kGroupRows - 1)),
                  key_end(group_row), [&](int h) { return seen[h]; });
  const float v_scale = p.VScale(kv_head);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float sum = consumer.SumOf(h);
    const int row = consumer.Row(h);
    if (row >= tile.num_rows) continue;
    const float factor = sum > 0 ? v_scale / sum : 0;  // 0: a row without keys
    BF16* out = p.Output(token(row), head(row)) + consumer.lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < Consumer::kHeadDim / 8; ++j) {
      *reinterpret_cast<uint32_t*>(out + 8 * j) =
          PackPair<BF16>(consumer.o[4 * j + 2 * h] * factor, consumer.o[4 * j + 2 * h + 1] * factor);
    }
  }
}

template <typename Shape, bool kTwoLevel, bool kTakeTurns>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    PrefillKernel(const __grid_constant__ CUtensorMap k_map,
                  const __grid_constant__ CUtensorMap v_map,
                  const __grid_constant__ AttentionParams p, const PrefillPlan plan) {
  static_assert(Shape::kRows == kPrefillRows);
  extern __shared__ __align__(1024) uint8_t shared_bytes[];
  auto& shared = *reinterpret_cast<TileShared<Shape>*>(shared_bytes);
  constexpr int kConsumerThreads = Shape::kConsumers * kWarpgroupSize;
  if (threadIdx.x == kConsumerThreads) {
    PrefetchTensorMap(&k_map);
    PrefetchTensorMap(&v_map);
    shared.Init();
  }
  __syncthreads();
  WaitForPrevious();
  AllowNext();
  PrefillSchedule schedule(p, plan);
  PrefillTile tile;
  if (threadIdx.x >= kConsumerThreads) {
    LendRegisters<Shape>();
    Produce<Shape>(p, shared, k_map, v_map, [&](KeyRange& keys) {
      const bool found = schedule.Next(tile);
      keys = tile.keys;
      return found;
    });
  } else {
    BorrowRegisters<Shape>();
    TileConsumer<Shape, kTwoLevel> consumer{shared};
    consumer.takes_turns = kTakeTurns;
    if (kTakeTurns) consumer.BeginTurns();
    while (schedule.Next(tile)) ConsumeTile(p, schedule, tile, consumer);
  }
}

template <typename Shape, bool kTwoLevel = Shape::kE4M3, bool kTakeTurns = true>
void LaunchPrefill(const AttentionParams& p, const PrefillPlan& plan, Stream stream) {
  constexpr auto kKernel = PrefillKernel<Shape, kTwoLevel, kTakeTurns>;
  AllowSharedMemory<kKernel, sizeof(TileShared<Shape>)>();
  const int grid = std::min(NumSms(), plan.max_items * p.num_kv_heads);
  Launch(kKernel, dim3(grid), Shape::kThreads, sizeof(TileShared<Shape>), stream, KeyMap<Shape>(p),
         ValueMap<Shape>(p), p, plan);
}

}  // namespace bough::cuda
