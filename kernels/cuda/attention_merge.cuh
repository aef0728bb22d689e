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
  int64_t slot;
  int count, stride;  // slots from one part to the next

  __device__ UnitParts(const WorkPlan& plan, int entry_ref, int unit, int kv_head, int heads) {
    const WorkKind kind = static_cast<WorkKind>(entry_ref & 1);
    const WorkEntry e = plan.entries[kind][entry_ref >> 1];
    const WorkList list = plan.lists[kind];
    const int first = WorkPlan::TakerOf(list, e, kv_head, 0);
    const int last = WorkPlan::TakerOf(list, e, kv_head, max(0, e.NumBlocks() - 1));
    slot = WorkPlan::SlotOf(list, e, kind, kv_head, first) + (unit - e.first_unit) * heads;
    count = last - first + 1;
    stride = MaxRows(kind);
  }
};

// Merges kRows rows of a unit of a KV head, from row `row` on, into o; the lanes of a warp take columns.
// kBatch parts' loads are in flight.
template <int kRows, int kBatch>
__device__ void MergeRows(const AttentionParams& p, const WorkPlan& plan, const WorkUnit& unit,
                          int unit_idx, int kv_head, int row) {
  const int heads = p.HeadsPerKv();
  for (int column = threadIdx.x % kWarpSize * 4; column < p.head_dim; column += kWarpSize * 4) {
    MergedState state[kRows];
#pragma unroll
    for (int entry : unit.entries) {
      if (entry < 0) continue;
      const UnitParts parts(plan, entry, unit_idx, kv_head, heads);
      for (int part = 0; part < parts.count; part += kBatch) {
        float2 ml[kRows][kBatch];
        float4 o[kRows][kBatch];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int k = 0; k < kBatch; ++k) {
            ml[r][k] = {-INFINITY, 0};
            o[r][k] = {0, 0, 0, 0};
            if (part + k < parts.count && row + r < heads) {
              const int64_t slot = parts.slot + int64_t{part + k} * parts.stride + row + r;
              const float* from = plan.Slot(slot, p.head_dim);
              ml[r][k] = __ldcg(reinterpret_cast<const float2*>(from + p.head_dim));
              o[r][k] = __ldcg(reinterpret_cast<const float4*>(from + column));
            }
          }
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) state[r].Add(ml[r], o[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (row + r < heads) {
        state[r].Write(p.Output(unit.token, kv_head * heads + row + r) + column, p.VScale(kv_head));
      }
    }
  }
}

// Merges `count` units; item(k) is the k-th and its KV head. Called by whole warps, this one `warp` of
// num_warps: each takes a unit at a time or, when there are few, four rows or one of a unit.
template <typename Item>
__device__ void MergeUnits(const AttentionParams& p, const WorkPlan& plan, int count, int warp,
                           int num_warps, Item item) {
  const int heads = p.HeadsPerKv();
  const auto unit_at = [&](int idx) {
    WorkUnit unit;
    const int4* from = reinterpret_cast<const int4*>(plan.units + idx);
    reinterpret_cast<int4*>(&unit)[0] = __ldg(from);
    reinterpret_cast<int4*>(&unit)[1] = __ldg(from + 1);
    return unit;
  };
  if (count >= num_warps) {
    for (int k = warp; k < count; k += num_warps) {
      const int2 what = item(k);
      const WorkUnit unit = unit_at(what.x);
      for (int row = 0; row < heads; row += 4) {
        MergeRows<4, 3>(p, plan, unit, what.x, what.y, row);
      }
    }
  } else {
    for (int i = warp; i < count * heads; i += num_warps) {
      const int2 what = item(i / heads);
      MergeRows<1, 12>(p, plan, unit_at(what.x), what.x, what.y, i % heads);
    }
  }
}

struct FinishMemory {
  bool last[kTileRows];
};

// Ends a part whose rows this thread block has written to the part's slot: counts it for its units
// and merges those that are complete. Called by the num_threads threads that wrote the rows, a
// multiple of 32; sync() is a barrier among them. `memory` must be free for it, and is afterwards at
// the next sync(). unit_of(i) is the part's i-th unit; only token and num_blocks are read.
template <typename UnitOf, typename Sync>
__device__ void FinishPart(const AttentionParams& p, const WorkPlan& plan, const WorkPart& part,
                           FinishMemory& memory, int thread, int num_threads, UnitOf unit_of,
                           Sync sync) {
  const int weight = max(1, part.block_end - part.block_begin);
  __threadfence();
  sync();
  for (int i = thread; i < part.entry.num_units; i += num_threads) {
    const auto unit = unit_of(i);
    bool last = false;
    if (unit.token >= 0) {
      int* counter = plan.counters + part.kv_head * plan.max_units + part.entry.first_unit + i;
      last = atomicAdd(counter, weight) + weight == unit.num_blocks;
      if (last) *counter = 0;  // for the next launch
    }
    memory.last[i] = last;
  }
  __threadfence();
  sync();
  for (int i = thread / kWarpSize; i < part.entry.num_units; i += num_threads / kWarpSize) {
    if (memory.last[i]) {
      MergeUnits(p, plan, 1, 0, 1, [&](int) {
        return int2{part.entry.first_unit + i, part.kv_head};
      });
    }
  }
}

}  // namespace bough::cuda
