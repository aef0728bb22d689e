// Who attends to what in decode attention, found on the device, so a captured graph may be replayed
// with other lengths and groups; and how the parts of one row's keys are merged.
//
// An item is one KV head of one entry: a sequence's own keys, or a group's shared keys for some of
// its rows. A plan is the list of all items of one kernel, cut into blocks of 64 keys; each thread
// block of a grid that fills the GPU once takes an equal stretch of it. Where a stretch's borders cut
// an item, or a row has shared and own keys, its parts (m, l, o) go to the workspace and are merged
// in the order of keys.
#pragma once

#include "kernels/cuda/attention_kernels.cuh"

namespace bough::cuda {

inline constexpr int kDecodeWarps = 4;
inline constexpr int kDecodeThreads = kDecodeWarps * kWarpSize;
inline constexpr int kMaxDecodeSeqs = 4096;  // the plans lie in shared memory
// Rows that share keys are cut into tiles of up to kTileRows query rows (row, head). A tile of at
// most kStreamRows takes the way of own keys, through registers; a larger one another kernel, through
// shared memory.
inline constexpr int kTileRows = 128;
inline constexpr int kStreamRows = 16;
// Thread blocks an SM, at most, of the kernels with parts of up to so many rows.
inline constexpr int kMaxTileBlocks = 2, kMaxStreamBlocks = 4;

// The workspace. The counters lie at a fixed place, so that they stay zero whatever a launch's shape.
struct Parts {
  static constexpr int kMaxCounters = 1 << 16;

  int* counters;         // [kMaxCounters] one per sequence and KV head, zero between launches
  float* o;              // [num_slots, head_dim] sum of e^(s - m) v
  float2* ml;            // [num_slots] m, in powers of 2, and l
  int64_t stream_slots;  // where slots of the stream kernel begin; before it, the tile kernel's

  // One slot per row of an item, and per thread block the rows of its largest part.
  static int64_t NumTileSlots(int num_seqs, int num_heads) {
    return int64_t{num_seqs} * num_heads + int64_t{NumSms()} * kMaxTileBlocks * kTileRows;
  }
  static int64_t NumSlots(int num_seqs, int num_heads) {
    return NumTileSlots(num_seqs, num_heads) + int64_t{2} * num_seqs * num_heads +
           int64_t{NumSms()} * kMaxStreamBlocks * kStreamRows;
  }
  static int64_t NumBytes(int num_seqs, int num_heads, int head_dim) {
    const int64_t slot_bytes = head_dim * sizeof(float) + sizeof(float2);
    return kMaxCounters * sizeof(int) + NumSlots(num_seqs, num_heads) * slot_bytes;
  }
  static Parts In(const AttentionParams& p) {
    CHECK(p.workspace != nullptr) << "decode attention needs AttentionWorkspaceBytes of workspace";
    CHECK_LE(p.num_seqs, kMaxDecodeSeqs);
    CHECK_LE(p.num_seqs * p.num_kv_heads, kMaxCounters);
    char* base = static_cast<char*>(p.workspace);
    float* o = reinterpret_cast<float*>(base + kMaxCounters * sizeof(int));
    float* ml = o + NumSlots(p.num_seqs, p.num_heads) * p.head_dim;
    return {reinterpret_cast<int*>(base), o, reinterpret_cast<float2*>(ml),
            NumTileSlots(p.num_seqs, p.num_heads)};
  }
};

// The largest i < n with values[i] <= x. REQUIRES: values[0] <= x.
__device__ inline int LastNotAbove(const int* values, int n, int x) {
  int low = 0, high = n;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (values[middle] <= x ? low : high) = middle;
  }
  return low;
}

// The groups, in shared memory.
struct Groups {
  const AttentionParams& p;
  int* start;       // [num_groups + 1]
  int* prefix_len;  // [num_groups]

  static int NumInts(const AttentionParams& p) { return 2 * p.num_groups + 1; }

  __device__ Groups(const AttentionParams& params, int* memory)
      : p(params), start(memory), prefix_len(memory + p.num_groups + 1) {}

  // All threads call it.
  __device__ void Load() {
    for (int g = threadIdx.x; g <= p.num_groups; g += kDecodeThreads) start[g] = p.group_start[g];
    // A group of padding rows shares nothing, whatever it says.
    for (int g = threadIdx.x; g < p.num_groups; g += kDecodeThreads) {
      const int first = p.group_start[g];
      const bool real = first < p.group_start[g + 1] && p.seqlens_kv[first] > 0;
      prefix_len[g] = real ? p.prefix_len[g] : 0;
    }
    __syncthreads();
  }

  __device__ int GroupOf(int seq) const { return LastNotAbove(start, p.num_groups, seq); }
  __device__ int PrefixBlocks(int seq) const { return prefix_len[GroupOf(seq)] / kBlockKeys; }
  // The first row of the tile that holds row `seq`, and how many rows the tile at `seq` has.
  __device__ int TileStart(int seq) const {
    const int first = start[GroupOf(seq)], tile_seqs = kTileRows / p.HeadsPerKv();
    return first + (seq - first) / tile_seqs * tile_seqs;
  }
  __device__ int TileSeqs(int seq) const {
    return min(kTileRows / p.HeadsPerKv(), start[GroupOf(seq) + 1] - seq);
  }
  __device__ bool IsLargeTile(int seq) const {
    return TileSeqs(seq) * p.HeadsPerKv() > kStreamRows;
  }
};

// Whose items a plan lists, in the order of its entries.
enum class Work {
  kOwn,      // of sequences with one query, all keys; no groups
  kTiles,    // of large tiles' first rows, the shared keys
  kStreams,  // of small tiles' first rows, the shared keys; then of all sequences, their own keys
};

// A thread block's share of an item: rows of sequences [first_seq, first_seq + num_seqs), row r being
// head r % heads_per_kv of the KV head's and sequence first_seq + r / heads_per_kv.
struct Segment {
  int kv_head, entry;
  int first_seq, num_seqs;
  int table_seq;           // whose table leads to the keys
  int key_begin, key_end;  // never empty
};

template <Work kWork>
struct Plan {
  // No part has more rows.
  static constexpr int kMaxRows = kWork == Work::kTiles ? kTileRows : kStreamRows;

  const AttentionParams& p;
  const Groups& groups;  // unless kOwn
  int* start;            // [num_entries + 1] blocks of the entries before, of one KV head
  int stretch;           // blocks per thread block

  static int NumInts(const AttentionParams& p) {
    return 1 + (kWork == Work::kStreams ? 2 * p.num_seqs : p.num_seqs);
  }

  __device__ int num_entries() const {
    return kWork == Work::kStreams ? 2 * p.num_seqs : p.num_seqs;
  }
  __device__ int head_blocks() const { return start[num_entries()]; }
  __device__ int num_blocks() const { return head_blocks() * p.num_kv_heads; }
  __device__ bool is_own(int entry) const {
    return kWork == Work::kOwn || (kWork == Work::kStreams && entry >= p.num_seqs);
  }
  __device__ int own_entry(int seq) const {
    return kWork == Work::kStreams ? p.num_seqs + seq : seq;
  }
  __device__ int seq_of(int entry) const {
    return kWork == Work::kStreams && entry >= p.num_seqs ? entry - p.num_seqs : entry;
  }

  __device__ int KeyEnd(int seq) const { return p.seqlens_kv[seq]; }
  __device__ int KeyBegin(int seq) const {
    return p.sliding_window > 0 ? max(0, KeyEnd(seq) - p.sliding_window) : 0;
  }
  // The first block of own keys.
  __device__ int FirstBlock(int seq) const {
    if constexpr (kWork == Work::kStreams) return groups.PrefixBlocks(seq);
    return KeyBegin(seq) / kBlockKeys;
  }

  __device__ int CountBlocks(int entry) const {
    const int seq = seq_of(entry);
    if (is_own(entry)) {
      if (!p.HasOneQuery(seq) || KeyEnd(seq) <= 0) return 0;
      return max(0, CeilDiv(KeyEnd(seq), kBlockKeys) - FirstBlock(seq));
    }
    const bool mine =
        groups.TileStart(seq) == seq && groups.IsLargeTile(seq) == (kWork == Work::kTiles);
    return mine ? groups.PrefixBlocks(seq) : 0;
  }

  // Fills the plan of a kernel with `num_thread_blocks`. All threads call it.
  __device__ void Make(int num_thread_blocks) {
    // An exclusive prefix sum: every thread sums a run of entries, then runs are summed.
    const int tid = threadIdx.x, warp = tid / kWarpSize, lane = tid % kWarpSize;
    const int n = num_entries(), run = CeilDiv(n, kDecodeThreads);
    int sum = 0;
    for (int e = tid * run; e < min(n, tid * run + run); ++e) {
      start[e] = sum;
      sum += CountBlocks(e);
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
    stretch = max(1, CeilDiv(num_blocks(), num_thread_blocks));
  }

  // The segment at [at, end) of the list, its first item's; `at` becomes the segment's end.
  __device__ Segment Take(int& at, int end) const {
    Segment s;
    s.kv_head = at / head_blocks();
    const int in_head = at - s.kv_head * head_blocks();
    s.entry = LastNotAbove(start, num_entries(), in_head);
    const int first = in_head - start[s.entry];
    const int count = min(end - at, start[s.entry + 1] - in_head);
    at += count;
    const int seq = seq_of(s.entry);
    s.first_seq = seq;
    if (is_own(s.entry)) {
      const int block = first + FirstBlock(seq);
      s.table_seq = seq;
      s.num_seqs = 1;
      s.key_begin = max(KeyBegin(seq), block * kBlockKeys);
      s.key_end = min(KeyEnd(seq), (block + count) * kBlockKeys);
    } else {
      s.table_seq = groups.start[groups.GroupOf(seq)];
      s.num_seqs = groups.TileSeqs(seq);
      s.key_begin = first * kBlockKeys;
      s.key_end = (first + count) * kBlockKeys;
    }
    return s;
  }

  // The thread blocks [first, first + count) that have a part of an item.
  struct Takers {
    int first, count;
  };
  __device__ Takers TakersOf(int kv_head, int entry) const {
    if (start[entry] == start[entry + 1]) return {0, 0};
    const int base = kv_head * head_blocks(), first = (base + start[entry]) / stretch;
    return {first, (base + start[entry + 1] - 1) / stretch - first + 1};
  }

  // Where `taker` puts row 0 of its part of an item. The list ascends in (kv_head, entry, taker), a
  // tile ends before the next tile's first row, and no part has more than kMaxRows rows: so no two
  // parts overlap.
  __device__ int64_t Slot(const Parts& parts, int kv_head, int entry, int taker) const {
    const int64_t slot = (kv_head * num_entries() + entry) * p.HeadsPerKv() + taker * kMaxRows;
    return kWork == Work::kTiles ? slot : slot + parts.stream_slots;
  }
};

// Where the parts of row 0 of a sequence's on one KV head lie: shared keys first, then own keys.
struct RowParts {
  int64_t shared_slot = 0, own_slot = 0;
  int num_shared = 0, num_own = 0;
  int shared_stride = 0;  // slots from one part to the next
  int num_streams = 0;    // parts of the stream kernel among them

  __device__ int size() const { return num_shared + num_own; }
  __device__ int64_t Slot(int part) const {
    return part < num_shared ? shared_slot + part * shared_stride
                             : own_slot + (part - num_shared) * kStreamRows;
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

// Merges the parts of 4 elements of one row, kBatch loads in flight.
template <int kBatch>
__device__ MergedState MergeParts(const Parts& parts, const RowParts& row, int head, int head_dim,
                                  int column) {
  MergedState state;
  for (int part = 0; part < row.size(); part += kBatch) {
    float2 ml[kBatch];
    float4 o[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      ml[k] = {-INFINITY, 0};
      o[k] = {0, 0, 0, 0};
      if (part + k < row.size()) {
        const int64_t slot = row.Slot(part + k) + head;
        ml[k] = __ldcg(parts.ml + slot);
        o[k] = __ldcg(reinterpret_cast<const float4*>(parts.o + slot * head_dim + column));
      }
    }
    state.Add(ml, o);
  }
  return state;
}

}  // namespace bough::cuda
