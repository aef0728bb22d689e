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

// Merges a unit's parts into o. Called by `num_threads` threads, `thread` of them this one.
__device__ inline void MergeUnit(const AttentionParams& p, const WorkPlan& plan, int unit_idx,
                                 int kv_head, int thread, int num_threads) {
  constexpr int kBatch = 8;  // loads in flight
  const WorkUnit unit = plan.units[unit_idx];
  const int heads = p.HeadsPerKv(), columns = p.head_dim / 4;
  for (int i = thread; i < heads * columns; i += num_threads) {
    const int head = i / columns, column = i % columns * 4;
    MergedState state;
#pragma unroll
    for (int entry : unit.entries) {
      if (entry < 0) continue;
      const UnitParts parts(plan, entry, unit_idx, kv_head, heads);
      for (int part = 0; part < parts.count; part += kBatch) {
        float2 ml[kBatch];
        float4 o[kBatch];
#pragma unroll
        for (int k = 0; k < kBatch; ++k) {
          ml[k] = {-INFINITY, 0};
          o[k] = {0, 0, 0, 0};
          if (part + k < parts.count) {
            const float* slot =
                plan.Slot(parts.slot + int64_t{part + k} * parts.stride + head, p.head_dim);
            ml[k] = __ldcg(reinterpret_cast<const float2*>(slot + p.head_dim));
            o[k] = __ldcg(reinterpret_cast<const float4*>(slot + column));
          }
        }
        state.Add(ml, o);
      }
    }
    state.Write(p.Output(unit.token, kv_head * heads + head) + column, p.VScale(kv_head));
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
  for (int i = 0; i < part.entry.num_units; ++i) {
    if (memory.last[i]) {
      MergeUnit(p, plan, part.entry.first_unit + i, part.kv_head, thread, num_threads);
    }
  }
}

}  // namespace bough::cuda
