// The prefill kernel: a thread block takes tiles of 128 query rows of one KV head, (query, head) pairs
// with the query outermost, so that heads which share keys read them once.
#pragma once

#include "kernels/cuda/attention_prefill_plan.h"
#include "kernels/cuda/attention_tile.cuh"

namespace bough::cuda {

// An item of the plan for one KV head, and the keys that its rows see.
struct PrefillTile : PrefillItem {
  KeyRange keys;

  // Row `row` sees keys before this one; rows past the last see what it sees.
  __device__ int KeyEnd(int row, const HeadDivider& heads) const {
    return first_position + heads.Unit(first_row + min(row, num_rows - 1)) + 1;
  }
};

// Of a query that sees keys before `end`.
__device__ inline int FirstKey(const AttentionParams& p, int end) {
  return p.sliding_window > 0 ? max(0, end - p.sliding_window) : 0;
}

// The tiles of one thread block. Thread blocks take the plan's tiles in turn, every second time in the
// other direction, so that all get about as much.
class PrefillSchedule {
 public:
  __device__ PrefillSchedule(const AttentionParams& p, const PrefillPlan& plan)
      : p_(p),
        heads_(p.HeadsPerKv()),
        items_(plan.items),
        num_tiles_(*plan.num_items * p.num_kv_heads) {}

  __device__ bool Next(PrefillTile& tile) {
    const int in_turn = turn_ % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
    const int index = turn_++ * gridDim.x + in_turn;
    if (index >= num_tiles_) return false;  // then it is the last turn
    static_cast<PrefillItem&>(tile) = items_[index / p_.num_kv_heads];
    tile.keys.seq = tile.seq;
    tile.keys.in_nodes = p_.num_nodes > 0;
    tile.keys.kv_head = index % p_.num_kv_heads;
    const int key_begin = FirstKey(p_, tile.KeyEnd(0, heads_));
    tile.keys.begin_block = key_begin / kTileKeys * (kTileKeys / kBlockKeys);
    tile.keys.first_block = key_begin / kBlockKeys;
    tile.keys.end_block = CeilDiv(max(0, tile.KeyEnd(tile.num_rows - 1, heads_)), kBlockKeys);
    return true;
  }

 private:
  const AttentionParams& p_;
  const HeadDivider heads_;
  const PrefillItem* items_;
  int num_tiles_, turn_ = 0;
};

template <typename Consumer>
__device__ void StartFetch(const AttentionParams& p, const HeadDivider& heads,
                           const PrefillTile& shared_tile, Consumer& consumer) {
  const PrefillTile tile = shared_tile;
  consumer.StartFetch(p, [&](int row) -> const BF16* {
    if (row >= tile.num_rows) return nullptr;
    const int unit = heads.Unit(tile.first_row + row);
    const int head = tile.first_row + row - unit * heads.heads;
    return p.Query(tile.first_token + unit, tile.keys.kv_head * heads.heads + head);
  });
}

template <typename Consumer>
__device__ void WriteOutput(const AttentionParams& p, const HeadDivider& heads,
                            const PrefillTile& shared_tile, const Consumer& consumer) {
  const PrefillTile tile = shared_tile;
  const float v_scale = p.VScale(tile.keys.kv_head);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float sum = consumer.SumOf(h);
    const int row = consumer.Row(h);
    const int unit = heads.Unit(tile.first_row + row);
    const int head = tile.first_row + row - unit * heads.heads;
    consumer.WriteBF16(h, sum > 0 ? v_scale / sum : 0,  // 0: a row without keys
                       p.Output(tile.first_token + unit, tile.keys.kv_head * heads.heads + head),
                       row < tile.num_rows);
  }
}

// A consumer warpgroup's part. Tiles stay in shared memory: the products need the registers.
template <typename Consumer>
__device__ void ConsumeTiles(const AttentionParams& p, Consumer& consumer) {
  const HeadDivider heads(p.HeadsPerKv());
  ItemReader<PrefillTile> reader{consumer.shared.ring};
  int slot, next_slot;
  const PrefillTile* tile = reader.Next(slot);
  WaitForPrevious();
  AllowNext();
  if (tile != nullptr) StartFetch(p, heads, *tile, consumer);
  for (; tile != nullptr; slot = next_slot) {
    consumer.FinishFetch(p.ScoreScale(tile->keys.kv_head));
    const PrefillTile* next = reader.Next(next_slot);
    if (next != nullptr) StartFetch(p, heads, *next, consumer);
    const int row = consumer.warpgroup * kGroupRows;
    consumer.Attend(tile->keys, FirstKey(p, tile->KeyEnd(row + kGroupRows - 1, heads)),
                    tile->KeyEnd(row, heads), [&](int h) {
                      const int end = tile->KeyEnd(consumer.Row(h), heads);
                      return int2{FirstKey(p, end), end};
                    });
    WriteOutput(p, heads, *tile, consumer);
    reader.GiveBack(slot);
    tile = next;
  }
}

template <typename Shape, bool kTwoLevel, bool kTakeTurns>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    PrefillKernel(const __grid_constant__ CUtensorMap k_map,
                  const __grid_constant__ CUtensorMap v_map,
                  const __grid_constant__ AttentionParams p, const PrefillPlan plan) {
  static_assert(Shape::kRows == kPrefillRows);
  using Shared = TileShared<Shape, PrefillTile>;
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
    PrefillSchedule schedule(p, plan);
    Produce(p, shared, k_map, v_map, [&](PrefillTile& tile) { return schedule.Next(tile); },
            [] { WaitForPrevious(); });
  } else {
    BorrowRegisters<Shape>();
    TileConsumer<Shape, Shared, kTwoLevel> consumer{shared};
    consumer.takes_turns = kTakeTurns;
    if (kTakeTurns) consumer.BeginTurns();
    ConsumeTiles(p, consumer);
  }
}

template <typename Shape, bool kTwoLevel = Shape::kE4M3, bool kTakeTurns = true>
void LaunchPrefill(const AttentionParams& p, const PrefillPlan& plan, Stream stream) {
  constexpr auto kKernel = PrefillKernel<Shape, kTwoLevel, kTakeTurns>;
  AllowSharedMemory<kKernel, sizeof(TileShared<Shape, PrefillTile>)>();
  const int grid = std::min(NumSms(), plan.max_items * p.num_kv_heads);
  Launch(kKernel, dim3(grid), Shape::kThreads, sizeof(TileShared<Shape, PrefillTile>), stream, KeyMap<Shape>(p),
         ValueMap<Shape>(p), p, plan);
}

}  // namespace bough::cuda
