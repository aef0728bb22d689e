// The warp that fills the stream kernel's ring. It looks up 32 parts at a time, one in each lane, so that
// short parts cost it no more than long ones.
#pragma once

#include <cstring>

#include "kernels/cuda/attention_stream_shape.cuh"

namespace bough::cuda {

// The lane's 32-bit words as `lane` has them.
template <typename T>
__device__ T Broadcast(const T& mine, int lane) {
  constexpr int kWords = sizeof(T) / 4;
  int words[kWords];
  memcpy(words, &mine, sizeof(T));
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = __shfl_sync(kFullWarp, words[i], lane);
  T theirs;
  memcpy(&theirs, words, sizeof(T));
  return theirs;
}

// A thread block's parts, 32 at a time.
struct PartBatches {
  const AttentionParams& p;
  const WorkPlan& plan;
  const WorkList list = plan.lists[kStreamWork];
  WorkStart at, end;
  const int lane = threadIdx.x % kWarpSize;

  __device__ PartBatches(const AttentionParams& params, const WorkPlan& work_plan)
      : p(params), plan(work_plan) {
    const WorkStart* starts = plan.starts + kStreamWork * (WorkPlan::kMaxGrid + 1) + blockIdx.x;
    at = starts[0];
    end = starts[1];
  }

  // Parts to come.
  __device__ int NumLeft() const {
    const int entries = (end.kv_head - at.kv_head) * list.num_entries + end.entry - at.entry;
    return entries + (end.block > (entries == 0 ? at.block : 0) ? 1 : 0);
  }

  // The lane's part of the next 32, and the entry that it is of; what follows from the entry's
  // contents comes with Complete, so that a batch can be asked for ahead of its use.
  __device__ int Take(StreamPart& part, WorkEntry& entry) {
    const int count = min(NumLeft(), kWarpSize);
    if (count == 0) return 0;
    const int from_head = at.entry + min(lane, count - 1);
    const int entry_idx = from_head % list.num_entries;
    part.kv_head = at.kv_head + from_head / list.num_entries;
    part.block_begin = lane == 0 ? at.block : 0;
    entry = plan.entries[kStreamWork][entry_idx];
    const bool cut = part.kv_head == end.kv_head && entry_idx == end.entry;
    part.block_end = cut ? end.block : -1;  // -1: all
    const int next = at.entry + count;
    at = {at.kv_head + next / list.num_entries, next % list.num_entries, 0};
    return count;
  }

  __device__ void Complete(StreamPart& part, const WorkEntry& entry) const {
    part.first_unit = entry.first_unit;
    part.num_units = entry.num_units;
    part.is_own = entry.is_own;
    part.first_block = entry.FirstBlock();
    if (part.block_end < 0) part.block_end = entry.NumBlocks();
    part.key_end = entry.key_end;
    part.table_seq = entry.table_seq;
    part.slot =
        static_cast<int>(WorkPlan::SlotOf(list, entry, kStreamWork, part.kv_head, blockIdx.x));
    const WorkUnit* unit = plan.units + entry.first_unit;
    const int4 head = __ldg(reinterpret_cast<const int4*>(unit));
    part.token = head.x;
    part.position = head.y;
    part.num_blocks = head.z;
    part.table_entry = part.block_begin < part.block_end ? TableEntry(part, part.block_begin) : 0;
    part.score_scale = p.ScoreScale(part.kv_head);
    part.v_scale = p.VScale(part.kv_head);
    const int num_blocks = entry.NumBlocks();
    const int first = WorkPlan::TakerOf(list, entry, part.kv_head, 0);
    const int last = WorkPlan::TakerOf(list, entry, part.kv_head, max(0, num_blocks - 1));
    part.own_slot =
        static_cast<int>(WorkPlan::SlotOf(list, entry, kStreamWork, part.kv_head, first));
    const bool alone = entry.is_own && part.num_blocks == max(1, num_blocks);
    part.own_parts = alone ? last - first + 1 : 0;
  }

  __device__ int TableEntry(const StreamPart& part, int block) const {
    return p.block_tables[int64_t{part.table_seq} * p.max_blocks + part.first_block + block];
  }
};

// waits: for the kernel before, but not before it must. Keys before a sequence's queries lie in the cache
// since an earlier step: their copies do not.
template <typename S>
struct StreamProducer {
  using Unit = typename StreamShared<S>::Info::Unit;
  const AttentionParams& p;
  const WorkPlan& plan;
  const CUtensorMap& k_map;
  const CUtensorMap& v_map;
  StreamShared<S>& shared;
  bool waits;
  const int lane = threadIdx.x % kWarpSize;
  const uint64_t policy = EvictFirst();
  StagePosition<S::kStages> at = {};
  const BF16* early_queries[S::kStages] =
      {};  // the lane's rows of stages whose queries are missing

  __device__ void CopyQuery(int stage, const BF16* query) {
    CopyBytes(shared.queries[stage] + lane * S::kQueryStride, query, S::kDim * 2,
              &shared.full[stage]);
  }

  __device__ void WaitOnce() {
    if (!waits) return;
    waits = false;
    WaitForPrevious();
    AllowNext();
#pragma unroll
    for (int stage = 0; stage < S::kStages; ++stage) {
      if (early_queries[stage] != nullptr) CopyQuery(stage, early_queries[stage]);
    }
  }

  // Lane r gets the unit of a part's row r.
  __device__ Unit UnitOfRow(const StreamPart& part) const {
    Unit unit = {part.token, part.position, part.num_blocks, 0};
    const int heads = p.HeadsPerKv(), row_unit = lane / heads;
    if (row_unit >= part.num_units) {
      unit.token = -1;
    } else if (row_unit > 0) {
      const WorkUnit* from = plan.units + part.first_unit + row_unit;
      const int4 head = __ldg(reinterpret_cast<const int4*>(from));
      unit = {head.x, head.y, head.z, 0};
    }
    return unit;
  }

  __device__ int Flags(const StreamPart& part, int block) const {
    const int key = (part.first_block + block) * kBlockKeys;
    int flags = 0;
    if (block == part.block_begin) flags |= kFirst;
    if (block + 1 >= part.block_end) flags |= kLast;
    if (block < part.block_end) flags |= kHasKeys;
    if (part.is_own && key + kBlockKeys > part.position + 1) flags |= kMasked;
    if (p.sliding_window > 0 && (!part.is_own || key < part.key_end - p.sliding_window)) {
      flags |= kMasked;
    }
    return flags;
  }

  __device__ void Fill(const StreamPart& part, const Unit& unit, int block, int table_entry) {
    const int heads = p.HeadsPerKv();
    uint64_t* full = &shared.full[at.stage];
    const int flags = Flags(part, block), key = (part.first_block + block) * kBlockKeys;
    const bool has_keys = flags & kHasKeys;
    const bool copies_row = has_keys && (flags & kFirst) && unit.token >= 0;
    const int num_copies = __popc(__ballot_sync(kFullWarp, copies_row));
    const bool is_new = part.is_own && key + kBlockKeys > part.position;
    if (is_new || !has_keys || at.phase == 1) WaitOnce();
    Wait(&shared.empty[at.stage], at.phase ^ 1);
    auto& info = shared.info[at.stage];
    if (lane % heads == 0 && lane / heads < part.num_units) info.units[lane / heads] = unit;
    __syncwarp();
    if (lane == 0) {
      info.part = part;
      info.flags = flags;
      info.key = key;
      ArriveExpectBytes(full, (has_keys ? 2 * S::kMatrixBytes : 0) + num_copies * S::kDim * 2);
      if (has_keys) CopyBlock(part.kv_head, table_entry, full);
    }
    __syncwarp();
    if (copies_row) {
      const BF16* query = p.Query(unit.token, part.kv_head * heads + lane % heads);
      if (waits) {
#pragma unroll
        for (int stage = 0; stage < S::kStages; ++stage) {
          if (stage == at.stage) early_queries[stage] = query;
        }
      } else {
        CopyQuery(at.stage, query);
      }
    }
    at.Advance();
  }

  __device__ void CopyBlock(int kv_head, int table_entry, uint64_t* full) const {
    uint8_t* to = shared.keys_values[at.stage];
    const int head = table_entry * p.num_kv_heads + kv_head;
#pragma unroll
    for (int box = 0; box < S::kBoxes; ++box) {
      CopyBox(to + box * S::kBoxSize, &k_map, box * S::kBoxBytes, head * kBlockKeys, full, policy);
    }
    to += S::kMatrixBytes;
    if constexpr (S::kWidens) {
      CopyBox(to, &v_map, 0, head * (S::kDim / 2), full, policy);
    } else {
#pragma unroll
      for (int box = 0; box < S::kBoxes; ++box) {
        CopyBox(to + box * S::kBoxSize, &v_map, box * S::kBoxBytes, head * kBlockKeys, full,
                policy);
      }
    }
  }

  __device__ void FillPart(const PartBatches& batches, const StreamPart& part) {
    const Unit unit = UnitOfRow(part);
    const auto table_entries = [&](int block) {  // lane i: of block + i
      return block + lane < part.block_end ? batches.TableEntry(part, block + lane) : 0;
    };
    int block = part.block_begin + 1;
    int entries = table_entries(block);
    Fill(part, unit, part.block_begin, part.table_entry);
    while (block < part.block_end) {
      const int ahead = table_entries(block + kWarpSize);
      const int count = min(kWarpSize, part.block_end - block);
      for (int i = 0; i < count; ++i) {
        Fill(part, unit, block + i, __shfl_sync(kFullWarp, entries, i));
      }
      entries = ahead;
      block += kWarpSize;
    }
  }

  __device__ void Run() {
    PartBatches batches(p, plan);
    StreamPart mine = {}, next = {};
    WorkEntry entry = {};
    int count = batches.Take(mine, entry);
    if (count > 0) batches.Complete(mine, entry);
    while (count > 0) {
      const int next_count = batches.Take(next, entry);
      for (int i = 0; i < count; ++i) {
        FillPart(batches, Broadcast(mine, i));
        if (i == 0 && next_count > 0) batches.Complete(next, entry);
      }
      mine = next;
      count = next_count;
    }
    WaitOnce();
    Wait(&shared.empty[at.stage], at.phase ^ 1);
    if (lane == 0) {
      shared.info[at.stage].flags = kEnd;
      Arrive(&shared.full[at.stage]);
    }
  }
};

}  // namespace bough::cuda
