// How the parts of a unit's rows become its answer: the thread block that completes the unit adds
// them up in the order of keys, whoever made them.
#pragma once

#include "kernels/cuda/attention_work.cuh"

namespace bough::cuda {

// A state (m, l, o) for 4 of a row's elements.
struct MergedState {
  float m = -INFINITY, l = 0;
  float4 o = {0, 0, 0, 0};

  // Adds kCount states at once; those with m = -inf add nothing.
  template <int kCount>
  __device__ void Add(const float2 (&ml)[kCount], const float4 (&part)[kCount]) {
    float max = m;
#pragma unroll
    for (int i = 0; i < kCount; ++i) max = fmaxf(max, ml[i].x);
    if (max == -INFINITY) return;
    const float rescale = Exp2(m - max);
    m = max;
    l *= rescale;
    o = {o.x * rescale, o.y * rescale, o.z * rescale, o.w * rescale};
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float w = Exp2(ml[i].x - max);
      l += ml[i].y * w;
      o.x += part[i].x * w;
      o.y += part[i].y * w;
      o.z += part[i].z * w;
      o.w += part[i].w * w;
    }
  }

  // Zeros if no key was seen.
  __device__ void Write(BF16* out, float v_scale) const {
    const float w = l > 0 ? v_scale / l : 0;
    *reinterpret_cast<uint2*>(out) = {PackPair<BF16>(o.x * w, o.y * w),
                                      PackPair<BF16>(o.z * w, o.w * w)};
  }
};

// Where the parts of one unit's row 0 on one KV head lie, of one entry.
struct UnitParts {
  int64_t slot = 0;
  int count = 0, stride = 0;  // slots from one part to the next
};

__device__ inline UnitParts FindParts(const WorkPlan& plan, int entry_ref, int unit, int kv_head,
                                      int heads) {
  const WorkKind kind = static_cast<WorkKind>(entry_ref & 1);
  const WorkEntry e = plan.entries[kind][entry_ref >> 1];
  const WorkList list = plan.lists[kind];
  const int first = WorkPlan::TakerOf(list, e, kv_head, 0);
  const int last = WorkPlan::TakerOf(list, e, kv_head, max(0, e.NumBlocks() - 1));
  return {WorkPlan::SlotOf(list, e, kind, kv_head, first) + (unit - e.first_unit) * heads,
          last - first + 1, MaxRows(kind)};
}

// A unit's entries.
inline constexpr int kMaxUnitEntries = kMaxForestDepth + 1;

// Merges kRows rows of a unit of a KV head, from row `row` on, into o; the lanes of a warp take columns.
// kGroups groups of parts are asked for at a time; what is added up first does not depend on it.
template <int kRows, int kGroups>
__device__ void MergeRows(const AttentionParams& p, const WorkPlan& plan,
                          const UnitParts (&entries)[kMaxUnitEntries], int token, int kv_head,
                          int row) {
  constexpr int kGroupParts = 4;
  const int heads = p.HeadsPerKv();
  for (int column = threadIdx.x % kWarpSize * 4; column < p.head_dim; column += kWarpSize * 4) {
    MergedState state[kRows];
    const float v_scale = p.VScale(kv_head);
    for (int e = 0; e < kMaxUnitEntries; ++e) {
      const UnitParts parts = entries[e];
      for (int part = 0; part < parts.count; part += kGroups * kGroupParts) {
        float2 ml[kRows][kGroups][kGroupParts];
        float4 o[kRows][kGroups][kGroupParts];
#pragma unroll
        for (int i = 0; i < kRows * kGroups * kGroupParts; ++i) {
          const int r = i / kGroupParts / kGroups, at = i % (kGroups * kGroupParts);
          float2& to_ml = ml[r][at / kGroupParts][at % kGroupParts];
          float4& to_o = o[r][at / kGroupParts][at % kGroupParts];
          to_ml = {-INFINITY, 0};
          to_o = {0, 0, 0, 0};
          if (part + at < parts.count && row + r < heads) {
            const int64_t slot = parts.slot + int64_t{part + at} * parts.stride + row + r;
            const float* from = plan.Slot(slot, p.head_dim);
            to_ml = __ldcg(reinterpret_cast<const float2*>(from + p.head_dim));
            to_o = __ldcg(reinterpret_cast<const float4*>(from + column));
          }
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int g = 0; g < kGroups; ++g) state[r].Add(ml[r][g], o[r][g]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (row + r < heads) {
        state[r].Write(p.Output(token, kv_head * heads + row + r) + column, v_scale);
      }
    }
  }
}

// A unit of a KV head with a part of so many blocks in the workspace that is not counted yet.
struct PendingUnit {
  int32_t unit, kv_head, num_blocks;
  int32_t all_blocks, token;  // the unit's, as WorkUnit
  // Where its parts lie, all of the stream kernel's; 0: the plan knows.
  int32_t slot, num_parts;
};

template <int kSize>
struct MergeMemory {
  static constexpr int kMaxPending = kSize;
  static_assert(kSize <= kWarpSize, "a lane each");
  PendingUnit pending[kSize];
  UnitParts parts[kSize][kMaxUnitEntries];
  int32_t complete[kSize];  // of the pending units
  int32_t num_complete;
};

// Counts `count` pending units' parts, and merges the units that they complete. Many at once, since it is
// a chain of trips to L2. Called by num_threads threads, this one `thread`, at least 2 warps, among
// which are those that wrote the parts' rows; sync() is a barrier among them. `memory` may be changed
// afterwards.
template <int kSize, typename Sync>
__device__ void CountUnits(const AttentionParams& p, const WorkPlan& plan,
                           MergeMemory<kSize>& memory, int count, int thread, int num_threads,
                           Sync sync) {
  const int warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int num_warps = num_threads / kWarpSize, heads = p.HeadsPerKv();
  if (thread == 0) memory.num_complete = 0;
  sync();
  const PendingUnit mine = lane < count ? memory.pending[lane] : PendingUnit{.token = -1};
  __threadfence();
  sync();
  if (mine.token >= 0) {
    if (warp == num_warps - 1) {
      int* counter = plan.counters + mine.kv_head * plan.max_units + mine.unit;
      if (atomicAdd(counter, mine.num_blocks) + mine.num_blocks == mine.all_blocks) {
        *counter = 0;  // for the next launch
        memory.complete[atomicAdd(&memory.num_complete, 1)] = lane;
      }
    } else {
      for (int e = warp; e < kMaxUnitEntries; e += num_warps - 1) {
        UnitParts parts = {};
        if (mine.num_parts > 0) {
          if (e == 0) parts = {mine.slot, mine.num_parts, MaxRows(kStreamWork)};
        } else {
          const int entry = plan.units[mine.unit].entries[e];
          if (entry >= 0) parts = FindParts(plan, entry, mine.unit, mine.kv_head, heads);
        }
        memory.parts[lane][e] = parts;
      }
    }
  }
  __threadfence();
  sync();
  // A warp takes a unit at a time or, when there are few, a row of one.
  const int num_complete = memory.num_complete;
  const bool by_rows = num_complete < num_warps;
  const int tasks_per_unit = by_rows ? heads : 1;
  for (int i = warp; i < num_complete * tasks_per_unit; i += num_warps) {
    const int k = memory.complete[i / tasks_per_unit];
    const auto& parts = memory.parts[k];
    const int token = memory.pending[k].token, kv_head = memory.pending[k].kv_head;
    if (by_rows) {
      MergeRows<1, 3>(p, plan, parts, token, kv_head, i % tasks_per_unit);
    } else {
      for (int row = 0; row < heads; row += 4) {
        MergeRows<4, 1>(p, plan, parts, token, kv_head, row);
      }
    }
  }
  sync();
}

using FinishMemory = MergeMemory<16>;

// Ends a part whose rows this thread block has written to the part's slot: counts it for its units.
// unit_of(i) is the part's i-th unit. The rest as CountUnits.
template <typename UnitOf, typename Sync>
__device__ void FinishPart(const AttentionParams& p, const WorkPlan& plan, const WorkPart& part,
                           FinishMemory& memory, int thread, int num_threads, UnitOf unit_of,
                           Sync sync) {
  const int num_blocks = max(1, part.block_end - part.block_begin);
  for (int begin = 0; begin < part.entry.num_units; begin += FinishMemory::kMaxPending) {
    const int count = min(FinishMemory::kMaxPending, part.entry.num_units - begin);
    if (thread < count) {
      const auto unit = unit_of(begin + thread);
      memory.pending[thread] = {.unit = part.entry.first_unit + begin + thread,
                                .kv_head = part.kv_head,
                                .num_blocks = num_blocks,
                                .all_blocks = unit.num_blocks,
                                .token = unit.token};
    }
    CountUnits(p, plan, memory, count, thread, num_threads, sync);
  }
}

}  // namespace bough::cuda
