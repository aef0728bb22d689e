// Who attends to what in decode attention, found on the device, so a captured graph may be replayed
// with other lengths and groups; and how the parts of one row's keys are merged.
//
// An item is one KV head of one entry: a sequence's own keys or, when sequences share a prefix, a
// tile of a group's query rows over the group's shared keys. All items, cut into blocks of 64 keys,
// form one list; each thread block of a grid that fills the GPU once takes a stretch of it of equal
// cost. Where a stretch's borders cut an item, or a row has shared and own keys, its parts (m, l, o)
// go to the workspace and are merged in the order of keys.
#pragma once

#include "kernels/cuda/attention_kernels.cuh"

namespace bough::cuda {

inline constexpr int kDecodeWarps = 4;
inline constexpr int kDecodeThreads = kDecodeWarps * kWarpSize;
inline constexpr int kMaxDecodeSeqs = 4096;   // the plan lies in shared memory
inline constexpr int kMaxCounters = 1 << 16;  // one per sequence and KV head
inline constexpr int64_t kCounterBytes = kMaxCounters * sizeof(int) + 256;  // and a barrier's
// Query rows of a thread block over shared keys, and how few of them take the way of own keys.
inline constexpr int kTileRows = 128;
inline constexpr int kStreamRows = 16;

// The workspace. The counters lie at a fixed place, so that they stay zero whatever a launch's shape.
struct Parts {
  int* counters;  // [kMaxCounters], zero between launches
  int* barrier;   // [2]: bifurcated attention's
  float* o;       // [num_slots, head_dim] sum of e^(s - m) v
  float2* ml;     // [num_slots] m, in powers of 2, and l
};

// Slots: of all rows twice, shared and own, and per thread block the rows of its largest part.
inline int64_t NumPartSlots(int num_seqs, int num_heads) {
  constexpr int kThreadBlockSlots =
      256;  // of 2 thread blocks with kTileRows, or 16 with kStreamRows
  return int64_t{2} * num_seqs * num_heads + int64_t{kThreadBlockSlots} * NumSms();
}

inline Parts LayOutParts(void* workspace, int num_seqs, int num_heads, int head_dim) {
  char* base = static_cast<char*>(workspace);
  float* o = reinterpret_cast<float*>(base + kCounterBytes);
  const int64_t num_slots = NumPartSlots(num_seqs, num_heads);
  int* counters = reinterpret_cast<int*>(base);
  return {counters, counters + kMaxCounters, o,
          reinterpret_cast<float2*>(o + num_slots * head_dim)};
}

// A thread block's share of an item: rows of sequences [first_seq, first_seq + num_seqs), row r being
// head r % heads_per_kv of the KV head's and sequence first_seq + r / heads_per_kv.
struct Segment {
  int kv_head, entry;
  int first_seq, num_seqs;
  int table_seq;           // whose table leads to the keys
  int key_begin, key_end;  // never empty
  bool tile;               // more than kStreamRows rows
};

// Entries in the order of the list: if kShared, first the tiles of shared keys, each at its first
// row, other rows' entries being empty; then every sequence's own keys.
template <bool kShared>
struct Plan {
  // Costs in about 0.5 us of a thread block, measured on an H200: to begin and end an item, and a
  // block of keys on each way.
  static constexpr int kItemCost = kShared ? 5 : 0;
  static constexpr int kStreamCost = kShared ? 2 : 1;
  static constexpr int kTileCost = 6;
  // No part has more rows.
  static constexpr int kMaxRows = kShared ? kTileRows : kStreamRows;

  const AttentionParams& p;
  int* start;        // [num_entries + 1] cost of the entries before, for one KV head
  int* group_start;  // [num_groups + 1]
  int* prefix_len;   // [num_groups]
  int stretch;       // cost per thread block

  static size_t SharedBytes(const AttentionParams& p) {
    return sizeof(int) * (kShared ? 2 * p.num_seqs + 2 * p.num_groups + 2 : p.num_seqs + 1);
  }

  __device__ Plan(const AttentionParams& params, int* memory) : p(params), start(memory) {
    group_start = start + num_entries() + 1;
    prefix_len = group_start + p.num_groups + 1;
  }

  __device__ int num_entries() const { return kShared ? 2 * p.num_seqs : p.num_seqs; }
  __device__ int head_cost() const { return start[num_entries()]; }
  __device__ int total_cost() const { return head_cost() * p.num_kv_heads; }
  __device__ int own_entry(int seq) const { return kShared ? p.num_seqs + seq : seq; }
  __device__ bool is_shared(int entry) const { return kShared && entry < p.num_seqs; }

  __device__ int KeyEnd(int seq) const { return p.seqlens_kv[seq]; }
  __device__ int KeyBegin(int seq) const {
    return p.sliding_window > 0 ? max(0, KeyEnd(seq) - p.sliding_window) : 0;
  }
  __device__ bool HasQuery(int seq) const {
    return p.cu_seqlens_q == nullptr || p.cu_seqlens_q[seq + 1] - p.cu_seqlens_q[seq] == 1;
  }
  __device__ int Token(int seq) const {
    return p.cu_seqlens_q == nullptr ? seq : p.cu_seqlens_q[seq];
  }
  __device__ BF16* Output(int seq, int kv_head, int head) const {
    const int64_t row = int64_t{Token(seq)} * p.num_heads + kv_head * p.HeadsPerKv() + head;
    return static_cast<BF16*>(p.o) + row * p.head_dim;
  }

  // The largest i < n with values[i] <= x. REQUIRES: values[0] <= x.
  __device__ static int LastNotAbove(const int* values, int n, int x) {
    int low = 0, high = n;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (values[middle] <= x ? low : high) = middle;
    }
    return low;
  }
  __device__ int GroupOf(int seq) const { return LastNotAbove(group_start, p.num_groups, seq); }
  // The first row of the tile that holds row `seq`, and the rows of the tile that starts at `seq`.
  __device__ int TileStart(int seq) const {
    const int first = group_start[GroupOf(seq)], tile_seqs = kTileRows / p.HeadsPerKv();
    return first + (seq - first) / tile_seqs * tile_seqs;
  }
  __device__ int TileSeqs(int seq) const {
    return min(kTileRows / p.HeadsPerKv(), group_start[GroupOf(seq) + 1] - seq);
  }
  __device__ bool IsTile(int entry) const {
    return is_shared(entry) && TileSeqs(entry) * p.HeadsPerKv() > kStreamRows;
  }
  __device__ int BlockCost(int entry) const { return IsTile(entry) ? kTileCost : kStreamCost; }

  __device__ int CountBlocks(int entry) const {
    if constexpr (kShared) {
      const int seq = entry < p.num_seqs ? entry : entry - p.num_seqs;
      const int prefix_blocks = prefix_len[GroupOf(seq)] / kBlockKeys;
      if (entry < p.num_seqs) return TileStart(seq) == seq ? prefix_blocks : 0;
      return max(0, CeilDiv(KeyEnd(seq), kBlockKeys) - prefix_blocks);
    } else {
      if (!HasQuery(entry) || KeyEnd(entry) <= 0) return 0;
      return CeilDiv(KeyEnd(entry), kBlockKeys) - KeyBegin(entry) / kBlockKeys;
    }
  }

  // Fills the plan. All threads call it.
  __device__ void Make() {
    const int tid = threadIdx.x, warp = tid / kWarpSize, lane = tid % kWarpSize;
    if constexpr (kShared) {
      for (int g = tid; g <= p.num_groups; g += kDecodeThreads) group_start[g] = p.group_start[g];
      // A group of padding rows shares nothing, whatever it says.
      for (int g = tid; g < p.num_groups; g += kDecodeThreads) {
        const int first = p.group_start[g];
        const bool real = first < p.group_start[g + 1] && p.seqlens_kv[first] > 0;
        prefix_len[g] = real ? p.prefix_len[g] : 0;
      }
      __syncthreads();
    }
    // An exclusive prefix sum: every thread sums a run of entries, then runs are summed.
    const int n = num_entries(), run = CeilDiv(n, kDecodeThreads);
    int sum = 0;
    for (int e = tid * run; e < min(n, tid * run + run); ++e) {
      start[e] = sum;
      const int num_blocks = CountBlocks(e);
      if (num_blocks > 0) sum += kItemCost + num_blocks * BlockCost(e);
    }
    int inclusive = sum;
#pragma unroll
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const int other = __shfl_up_sync(kFullWarp, inclusive, offset);
      if (lane >= offset) inclusive += other;
    }
    __shared__ int warp_sums[kDecodeWarps];
    if (lane == kWarpSize - 1) warp_sums[warp] = inclusive;
    __syncthreads();
    int before = inclusive - sum;
    for (int w = 0; w < warp; ++w) before += warp_sums[w];
    for (int e = tid * run; e < min(n, tid * run + run); ++e) start[e] += before;
    if (tid == kDecodeThreads - 1) start[n] = before + sum;
    __syncthreads();
    stretch = max(1, CeilDiv(total_cost(), static_cast<int>(gridDim.x)));
  }

  // The first segment in [at, end) of the list, and `at` becomes its end; false if there is none.
  // An item's cost begins with kItemCost without blocks; a block belongs to whoever has its first
  // unit of cost.
  __device__ bool Next(int& at, int end, Segment& s) const {
    while (at < end) {
      s.kv_head = at / head_cost();
      const int base = s.kv_head * head_cost();
      s.entry = LastNotAbove(start, num_entries(), at - base);
      const int first_cost = base + start[s.entry] + kItemCost;  // of block 0
      const int item_end = min(end, base + start[s.entry + 1]);
      const int block_cost = BlockCost(s.entry);
      const int first = CeilDiv(max(0, at - first_cost), block_cost);
      const int last = CeilDiv(max(0, item_end - first_cost), block_cost);
      at = item_end;
      if (first == last) continue;
      Fill(s, first, last);
      return true;
    }
    return false;
  }

  // Blocks [first, last) of the item.
  __device__ void Fill(Segment& s, int first, int last) const {
    s.tile = IsTile(s.entry);
    if (is_shared(s.entry)) {
      s.first_seq = s.entry;
      s.num_seqs = TileSeqs(s.entry);
      s.table_seq = group_start[GroupOf(s.entry)];
      s.key_begin = first * kBlockKeys;
      s.key_end = last * kBlockKeys;
      return;
    }
    const int seq = kShared ? s.entry - p.num_seqs : s.entry;
    int skipped = KeyBegin(seq) / kBlockKeys;
    if constexpr (kShared) skipped = prefix_len[GroupOf(seq)] / kBlockKeys;
    s.first_seq = s.table_seq = seq;
    s.num_seqs = 1;
    s.key_begin = max(KeyBegin(seq), (first + skipped) * kBlockKeys);
    s.key_end = min(KeyEnd(seq), (last + skipped) * kBlockKeys);
  }

  // The thread blocks [first, first + count) that have a part of an item.
  struct Takers {
    int first, count;
  };
  __device__ Takers TakersOf(int kv_head, int entry) const {
    if (start[entry] == start[entry + 1]) return {0, 0};
    const int block_cost = BlockCost(entry), base = kv_head * head_cost();
    const int first = (base + start[entry] + kItemCost) / stretch;
    return {first, (base + start[entry + 1] - block_cost) / stretch - first + 1};
  }
  __device__ Takers SharedTakers(int kv_head, int seq) const {
    if constexpr (kShared) return TakersOf(kv_head, TileStart(seq));
    return {0, 0};
  }
  __device__ Takers OwnTakers(int kv_head, int seq) const {
    return TakersOf(kv_head, own_entry(seq));
  }
  __device__ int NumParts(int kv_head, int seq) const {
    return SharedTakers(kv_head, seq).count + OwnTakers(kv_head, seq).count;
  }

  // Where `taker` puts row 0 of its part of an item. The list ascends in (kv_head, entry, taker), a
  // tile ends before the next tile's first row, and no part has more than kMaxRows rows: so no two
  // parts overlap.
  __device__ int64_t Slot(int kv_head, int entry, int taker) const {
    return (kv_head * num_entries() + entry) * p.HeadsPerKv() + taker * kMaxRows;
  }

  // Rows without keys are all zero.
  __device__ void WriteEmptyRows() const {
    for (int seq = blockIdx.x; seq < p.num_seqs; seq += gridDim.x) {
      if (!HasQuery(seq) || NumParts(0, seq) > 0) continue;
      for (int i = threadIdx.x; i < p.num_heads * p.head_dim / 8; i += kDecodeThreads) {
        reinterpret_cast<uint4*>(Output(seq, 0, 0))[i] = {0, 0, 0, 0};
      }
    }
  }
};

// A state (m, l, o) for 4 of a row's elements.
struct MergedState {
  float m = -INFINITY, l = 0;
  float4 o = {0, 0, 0, 0};

  // Adds kCount states at once; those with m = -inf add nothing. REQUIRES: one of all is not empty.
  template <int kCount>
  __device__ void Add(const float2 (&ml)[kCount], const float4 (&part)[kCount]) {
    float max = m;
#pragma unroll
    for (int i = 0; i < kCount; ++i) max = fmaxf(max, ml[i].x);
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

  __device__ void Write(BF16* out, float v_scale) const {
    const float w = v_scale / l;
    *reinterpret_cast<uint2*>(out) = {PackPair<BF16>(o.x * w, o.y * w),
                                      PackPair<BF16>(o.z * w, o.w * w)};
  }
};

// Merges the parts of 4 elements of one row, kBatch loads in flight, and writes them to o.
template <int kBatch, bool kShared>
__device__ void MergeParts(const Plan<kShared>& plan, const Parts& parts, int kv_head, int seq,
                           int head, int column, float v_scale) {
  const auto shared = plan.SharedTakers(kv_head, seq), own = plan.OwnTakers(kv_head, seq);
  const int num_parts = shared.count + own.count;
  int64_t shared_slot = head;
  if constexpr (kShared) {
    const int tile = plan.TileStart(seq);
    shared_slot += plan.Slot(kv_head, tile, shared.first) + (seq - tile) * plan.p.HeadsPerKv();
  }
  const int64_t own_slot = plan.Slot(kv_head, plan.own_entry(seq), own.first) + head;
  MergedState state;
  for (int part = 0; part < num_parts; part += kBatch) {
    float2 ml[kBatch];
    float4 o[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      ml[k] = {-INFINITY, 0};
      o[k] = {0, 0, 0, 0};
      if (part + k < num_parts) {
        const int64_t slot = part + k < shared.count
                                 ? shared_slot + (part + k) * plan.kMaxRows
                                 : own_slot + (part + k - shared.count) * plan.kMaxRows;
        ml[k] = __ldcg(parts.ml + slot);
        o[k] = __ldcg(reinterpret_cast<const float4*>(parts.o + slot * plan.p.head_dim + column));
      }
    }
    state.Add(ml, o);
  }
  state.Write(plan.Output(seq, kv_head, head) + column, v_scale);
}

}  // namespace bough::cuda
