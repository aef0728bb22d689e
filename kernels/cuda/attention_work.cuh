// Who attends to what: the plan that PlanAttention leaves in the workspace, as the kernels read it.
//
// A *unit* is one query of the op, that is HeadsPerKv() rows of each KV head: a token, if every
// sequence has few queries (a decode step, speculation), else a sequence, of which only those with
// one query take part (the prefill kernel serves the others). An *entry* is a range of units over a
// range of keys that all of them may see: a tile of a shared node's units over the node's keys, or a
// sequence's units over its own keys. Entries of at most kStreamRows rows go to the stream kernel (D:
// keys pass by many few rows), larger ones to the tile kernel (P: many rows). Each kernel has a list
// of its entries.
//
// A list is laid out along a line of cost: KV head by KV head, entry by entry, block by block of 64
// keys, with a fixed cost at the end of each entry for what is not keys. Thread block c of the
// kernel's grid takes what begins in [c stretch, (c + 1) stretch). Its share of an entry of a KV head
// is a *part*; a part's rows leave (m, l, o) in a slot of the workspace, unless the part is all there
// is for them. Whoever completes a unit of a KV head merges its parts in the order of keys
// (attention_merge.cuh).
//
// The plan kernel does not let the next kernel begin early, so all kernels after it may read the plan
// before WaitForPrevious. The tile kernel calls AllowNext after WaitForPrevious: the stream kernel,
// next on the stream, takes the SMs that it leaves, without waiting for its end.
#pragma once

#include "kernels/cuda/attention_kernels.cuh"

namespace bough::cuda {

enum WorkKind { kTileWork = 0, kStreamWork = 1 };
inline constexpr int kTileRows = 128, kStreamRows = 16;  // rows of an entry, at most
__host__ __device__ constexpr int MaxRows(WorkKind kind) {
  return kind == kTileWork ? kTileRows : kStreamRows;
}

// Query row r of an entry: head r % HeadsPerKv() of unit first_unit + r / HeadsPerKv().
struct alignas(16) WorkEntry {
  int32_t first_unit, num_units;
  int32_t table_seq;  // whose block table leads to the keys
  int32_t key_begin,
      key_end;  // begins with the first key that any row sees; ends with the node or sequence
  int32_t cost_begin;  // of the entries before, of one KV head
  int16_t block_cost;
  int16_t is_own;  // a sequence's own keys: its units' positions are the last ones before key_end
  int32_t row_begin;  // rows of the entries before

  __device__ int FirstBlock() const { return key_begin / kBlockKeys; }
  __device__ int NumBlocks() const {  // 0: the rows see no keys and want zeros
    return key_begin < key_end ? CeilDiv(key_end, kBlockKeys) - FirstBlock() : 0;
  }
};

// The row of a unit sees keys [max(0, position + 1 - window), position + 1) of an entry's, all of
// them in a node without a window.
struct alignas(16) WorkUnit {
  int32_t token;     // of q and o; -1: takes no part, its rows are neither computed nor written
  int32_t position;  // of its query in the sequence
  int32_t
      num_blocks;  // of all its entries, each counting at least 1: when they are done it is complete
  int32_t entries[kMaxForestDepth + 1];  // in the order of keys: 2 index + kind, -1: none
};

struct alignas(16) WorkList {
  int32_t num_entries;
  int32_t head_cost;   // of all entries, of one KV head
  int32_t stretch;     // at least every block_cost
  int32_t num_rows;    // of all entries
  int64_t first_slot;  // of the list's parts
};

// Where a thread block's stretch begins: at a block of an entry, counted from the entry's first.
struct alignas(16) WorkStart {
  int32_t kv_head, entry, block;
};

// A part: blocks [block_begin, block_end) of an entry of a KV head, counted from the entry's first.
struct WorkPart {
  WorkEntry entry;
  int kv_head, entry_idx;
  int block_begin, block_end;
  int64_t slot;  // of its row 0
  bool whole;    // all blocks of the entry

  __device__ int NumRows(int heads_per_kv) const { return entry.num_units * heads_per_kv; }
};

// The workspace. The counters lie at a fixed place, so that they stay zero whatever a launch's shape.
struct WorkPlan {
  static constexpr int kMaxCounters = 1 << 18;
  static constexpr int kMaxGrid = 1024;  // thread blocks of a kernel

  int32_t* counters;  // [num_kv_heads, max_units] blocks done; zero between launches
  WorkList* lists;    // [2] by WorkKind
  WorkStart* starts;  // [2, kMaxGrid + 1]
  WorkEntry* entries[2];
  WorkUnit* units;
  float* slots;  // [num_slots, SlotFloats(head_dim)]: o, sum of 2^(s - m) v; m, in powers of 2; l
  int max_units;

  __host__ __device__ static int SlotFloats(int head_dim) { return head_dim + 4; }

  __device__ float* Slot(int64_t slot, int head_dim) const {
    return slots + slot * SlotFloats(head_dim);
  }

  // The thread block that has block `block` of an entry.
  __device__ static int TakerOf(const WorkList& list, const WorkEntry& e, int kv_head, int block) {
    return (kv_head * list.head_cost + e.cost_begin + block * e.block_cost) / list.stretch;
  }
  // Where it leaves row 0. A list ascends in (kv_head, entry, taker) and no part has more than MaxRows
  // rows, so no two parts overlap.
  __device__ static int64_t SlotOf(const WorkList& list, const WorkEntry& e, WorkKind kind,
                                   int kv_head, int taker) {
    return list.first_slot + int64_t{kv_head} * list.num_rows + e.row_begin +
           int64_t{taker} * MaxRows(kind);
  }
};

// A thread block's parts, one after the other:  for (WorkWalk walk(plan, kind); walk.Next(part);)
// Any thread may walk on its own. Reads the plan only.
class WorkWalk {
 public:
  __device__ WorkWalk(const WorkPlan& plan, WorkKind kind)
      : entries_(plan.entries[kind]), kind_(kind) {
    const WorkStart* starts = plan.starts + kind * (WorkPlan::kMaxGrid + 1) + blockIdx.x;
    list_ = plan.lists[kind];
    at_ = starts[0];
    end_ = starts[1];
  }

  __device__ bool Next(WorkPart& part) {
    const bool in_last = at_.kv_head == end_.kv_head && at_.entry == end_.entry;
    if (in_last && at_.block >= end_.block) return false;
    part.entry = entries_[at_.entry];
    part.kv_head = at_.kv_head;
    part.entry_idx = at_.entry;
    part.block_begin = at_.block;
    const int num_blocks = part.entry.NumBlocks();
    part.block_end = in_last ? end_.block : num_blocks;
    part.whole = part.block_begin == 0 && part.block_end == num_blocks;
    part.slot = WorkPlan::SlotOf(list_, part.entry, kind_, part.kv_head, blockIdx.x);
    if (in_last) {
      at_.block = end_.block;
      return true;
    }
    at_.block = 0;
    if (++at_.entry == list_.num_entries) {
      at_.entry = 0;
      ++at_.kv_head;
    }
    return true;
  }

 private:
  const WorkEntry* entries_;
  WorkKind kind_;
  WorkList list_;
  WorkStart at_, end_;
};

}  // namespace bough::cuda
