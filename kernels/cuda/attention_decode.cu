// Decode attention at the speed of memory: keys and values stream from the cache straight into the
// registers of tensor core instructions; shared memory serves queries and merges alone.
//
// Work. An item is one KV head of one entry: a sequence's own keys, or, when sequences share a
// prefix, a tile of up to 64 query rows of one group over the group's shared keys. All items, cut
// into blocks of 64 keys, form one list; each thread block of a grid that fills the GPU once takes
// an equal stretch of it. The list is found on the device from seqlens_kv, so a captured graph may
// be replayed with other lengths. Where a stretch's borders cut an item, or a row has shared and
// own keys, its parts (m, l, o) go to the workspace and the last part's thread block merges them
// all in the order of keys: the result does not depend on who was last.
//
// Inner loop. A stage is 16 (bf16) or 32 (e4m3) keys of one warp. S^T = K Q^T and O^T = V^T P^T,
// so keys and values are the A operands and 8 query rows are enough to fill an instruction. Sums
// over head_dim and keys do not care about order, so lane (g, t) of a fragment takes whichever
// elements come in its own 16-byte loads: of K, pieces of the rows of keys g and g + 8; of V, pieces
// of the rows of keys 2t, 2t + 1, 2t + 8, 2t + 9, interleaved in registers. P^T needs one 8x8
// transpose. A stage's registers are reloaded as soon as they have been used; other warps hide the
// latency. Own keys: the four warps take every fourth stage for the same rows. Shared keys: each
// warp takes 16 rows and all stages; the four meet in L1.
#include "kernels/cuda/attention_kernels.cuh"

namespace bough::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kMaxSeqs = 4096;         // the plan lies in shared memory
constexpr int kMaxCounters = 1 << 16;  // one per sequence and KV head
constexpr int kMaxBlocksPerSm = 4;
constexpr int kSharedTileRows = 64;

// The workspace: counters at a fixed place, so that they stay zero whatever a launch's shape; then
// the parts' o [num_slots, head_dim] and (m, l) [num_slots].
struct Parts {
  int* counters;
  float* o;
  float2* ml;
};

int64_t NumSlots(int num_seqs, int num_heads) {
  return int64_t{2} * num_seqs * num_heads + int64_t{kMaxBlocksPerSm} * NumSms() * kSharedTileRows;
}

Parts LayOut(void* workspace, int num_seqs, int num_heads, int head_dim) {
  char* base = static_cast<char*>(workspace);
  float* o = reinterpret_cast<float*>(base + kMaxCounters * sizeof(int));
  const int64_t num_slots = NumSlots(num_seqs, num_heads);
  return {reinterpret_cast<int*>(base), o, reinterpret_cast<float2*>(o + num_slots * head_dim)};
}

// ---- The plan --------------------------------------------------------------------------------

// Entries in the order of the list: with groups, first the tiles of shared keys, one at each tile's
// first row; then every sequence's own keys. Item (kv_head, entry) holds the blocks
// [kv_head * start[num_entries] + start[entry], kv_head * start[num_entries] + start[entry + 1]).
template <bool kShared>
struct Plan {
  const AttentionParams& p;
  int* start;        // [num_entries + 1]
  int* group_start;  // [num_groups + 1]
  int* prefix_len;   // [num_groups]
  int stretch;       // blocks per thread block

  static size_t SharedBytes(const AttentionParams& p) {
    return sizeof(int) * (kShared ? 2 * p.num_seqs + 2 * p.num_groups + 2 : p.num_seqs + 1);
  }

  __device__ Plan(const AttentionParams& params, int* memory) : p(params), start(memory) {
    group_start = start + num_entries() + 1;
    prefix_len = group_start + p.num_groups + 1;
  }

  __device__ int num_entries() const { return kShared ? 2 * p.num_seqs : p.num_seqs; }
  __device__ int num_blocks() const { return start[num_entries()] * p.num_kv_heads; }
  __device__ int tile_seqs() const { return kSharedTileRows / p.HeadsPerKv(); }
  __device__ int own_entry(int seq) const { return kShared ? p.num_seqs + seq : seq; }

  // Keys that `seq` sees of its own table.
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

  __device__ int GroupOf(int seq) const {
    int low = 0, high = p.num_groups;  // group_start[low] <= seq < group_start[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (group_start[middle] <= seq ? low : high) = middle;
    }
    return low;
  }
  // The first row of the tile that holds row `seq`.
  __device__ int TileStart(int seq) const {
    const int first = group_start[GroupOf(seq)];
    return first + (seq - first) / tile_seqs() * tile_seqs();
  }

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
      for (int g = tid; g <= p.num_groups; g += kThreads) group_start[g] = p.group_start[g];
      // A group of padding rows shares nothing, whatever it says.
      for (int g = tid; g < p.num_groups; g += kThreads) {
        const int first = p.group_start[g];
        const bool real = first < p.group_start[g + 1] && p.seqlens_kv[first] > 0;
        prefix_len[g] = real ? p.prefix_len[g] : 0;
      }
      __syncthreads();
    }
    // An exclusive prefix sum: every thread sums a run of entries, then runs are summed.
    const int n = num_entries(), run = CeilDiv(n, kThreads);
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
    __shared__ int warp_sums[kWarps];
    if (lane == kWarpSize - 1) warp_sums[warp] = inclusive;
    __syncthreads();
    int before = inclusive - sum;
    for (int w = 0; w < warp; ++w) before += warp_sums[w];
    for (int e = tid * run; e < min(n, tid * run + run); ++e) start[e] += before;
    if (tid == kThreads - 1) start[n] = before + sum;
    __syncthreads();
    stretch = max(1, CeilDiv(num_blocks(), static_cast<int>(gridDim.x)));
  }

  // The entry that holds block `at` of a head's list.
  __device__ int FindEntry(int at) const {
    int low = 0, high = num_entries();  // start[low] <= at < start[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (start[middle] <= at ? low : high) = middle;
    }
    return low;
  }

  // The thread blocks [first, first + count) that take a part of an item.
  struct Takers {
    int first, count;
  };
  __device__ Takers TakersOf(int kv_head, int entry) const {
    const int begin = start[entry], end = start[entry + 1];
    if (begin == end) return {0, 0};
    const int base = kv_head * start[num_entries()];
    const int first = (base + begin) / stretch;
    return {first, (base + end - 1) / stretch - first + 1};
  }
  __device__ Takers SharedTakers(int kv_head, int seq) const {
    if constexpr (kShared) return TakersOf(kv_head, TileStart(seq));
    return {0, 0};
  }
  __device__ int NumParts(int kv_head, int seq) const {
    return SharedTakers(kv_head, seq).count + TakersOf(kv_head, own_entry(seq)).count;
  }

  // Where `taker` puts row 0 of its part of an item. The list ascends in (kv_head, entry, taker),
  // the tile at an entry ends before the next tile's first row, and no part has more than
  // kSharedTileRows rows: so no two parts overlap.
  __device__ int Slot(int kv_head, int entry, int taker) const {
    return (kv_head * num_entries() + entry) * p.HeadsPerKv() + taker * kSharedTileRows;
  }
};

// One thread block's part of an item.
struct Segment {
  int kv_head, entry;
  int first_seq, num_seqs;  // whose rows: row r is head r % heads_per_kv of sequence r / it
  int key_begin, key_end;   // through the table of first_seq
  bool shared;
};

// ---- The inner loop --------------------------------------------------------------------------

// 16 bytes of the cache, or zeros.
template <int kBytes>
__device__ void LoadIf(uint32_t* out, const char* from, bool wanted) {
  if constexpr (kBytes == 16) {
    asm volatile(
        "{.reg .pred p; setp.ne.s32 p, %5, 0;\n"
        "mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;\n"
        "@p ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];}"
        : "=&r"(out[0]), "=&r"(out[1]), "=&r"(out[2]), "=&r"(out[3])
        : "l"(from), "r"(static_cast<int>(wanted)));
  } else {
    static_assert(kBytes == 8);
    asm volatile(
        "{.reg .pred p; setp.ne.s32 p, %3, 0;\n"
        "mov.b32 %0, 0; mov.b32 %1, 0;\n"
        "@p ld.global.nc.v2.b32 {%0, %1}, [%2];}"
        : "=&r"(out[0]), "=&r"(out[1])
        : "l"(from), "r"(static_cast<int>(wanted)));
  }
}

// What a warp needs to know of the shapes.
template <typename KV, int kHeadDim>
struct Shape {
  using T = MmaType<KV>;
  static constexpr int kRowBytes = kHeadDim * sizeof(KV);
  static constexpr int kTiles = sizeof(KV) == 1 ? 2 : 1;  // of 16 keys, in a stage
  static constexpr int kStageKeys = 16 * kTiles;
  static constexpr int kKRegs = kRowBytes / 16;  // per key: a quarter of the row
  static constexpr int kVRegs = kRowBytes / 32;  // per value: an eighth of the row
  static constexpr int kVBytes = kRowBytes / 8 < 16 ? kRowBytes / 8 : 16;  // of one load
  static constexpr int kQChunks = kHeadDim / 32;  // two k-steps of S, 8 elements of q a lane

  // Lane t's 8 elements of a query row that meet its elements of K in k-steps 2c and 2c + 1.
  __device__ static int QueryElement(int c, int t) {
    if constexpr (sizeof(KV) == 1) return c / 2 * 64 + t * 16 + c % 2 * 8;
    return c * 32 + t * 8;
  }
  // The first of the two elements of head_dim that lane g holds of O^T's tile j.
  __device__ static int OutputElement(int j, int g) {
    constexpr int kPiece = kVBytes / sizeof(KV);
    return 2 * j / kPiece * 8 * kPiece + g * kPiece + 2 * j % kPiece;
  }
};

// One stage's keys or values in registers.
template <typename S>
struct StageRegisters {
  uint32_t k[S::kTiles][2][S::kKRegs];
  uint32_t v[S::kTiles][4][S::kVRegs];

  // `rows` is the stage's first key, which stands at position `key`.
  __device__ void LoadK(const char* rows, int key, const Segment& s) {
    const int g = threadIdx.x % kWarpSize / 4, t = threadIdx.x % 4;
    const char* lane = rows + g * S::kRowBytes + t * 16;
#pragma unroll
    for (int i = 0; i < S::kTiles; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = i * 16 + r * 8;
        const bool wanted = s.key_begin <= key + row + g && key + row + g < s.key_end;
#pragma unroll
        for (int j = 0; j < S::kKRegs / 4; ++j) {
          LoadIf<16>(&k[i][r][4 * j], lane + row * S::kRowBytes + j * 64, wanted);
        }
      }
    }
  }

  __device__ void LoadV(const char* rows, int key, const Segment& s) {
    const int g = threadIdx.x % kWarpSize / 4, t = threadIdx.x % 4;
    const char* lane = rows + 2 * t * S::kRowBytes + g * S::kVBytes;
#pragma unroll
    for (int i = 0; i < S::kTiles; ++i) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int row = i * 16 + r / 2 * 8 + r % 2;
        const bool wanted = s.key_begin <= key + row + 2 * t && key + row + 2 * t < s.key_end;
#pragma unroll
        for (int j = 0; j < S::kVRegs * 4 / S::kVBytes; ++j) {
          LoadIf<S::kVBytes>(&v[i][r][j * (S::kVBytes / 4)],
                             lane + row * S::kRowBytes + j * 8 * S::kVBytes, wanted);
        }
      }
    }
  }

  // K's fragment of keys 16 i .. 16 i + 15 in k-step `step`.
  __device__ void KFragment(int i, int step, uint32_t (&a)[4]) const {
    if constexpr (S::kTiles == 2) {  // e4m3: four elements a register
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        a[r] = WidenPair(static_cast<uint16_t>(k[i][r][step]));
        a[r + 2] = WidenPair(static_cast<uint16_t>(k[i][r][step] >> 16));
      }
    } else {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        a[r] = k[i][r][2 * step];
        a[r + 2] = k[i][r][2 * step + 1];
      }
    }
  }

  // V^T's fragment of elements tile j, keys 16 i .. 16 i + 15: pairs of neighbouring keys.
  __device__ void VFragment(int i, int j, uint32_t (&a)[4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if constexpr (S::kTiles == 2) {
        const uint32_t pairs = __byte_perm(v[i][2 * half][j / 2], v[i][2 * half + 1][j / 2],
                                           j % 2 == 0 ? 0x5140 : 0x7362);
        a[2 * half] = WidenPair(static_cast<uint16_t>(pairs));
        a[2 * half + 1] = WidenPair(static_cast<uint16_t>(pairs >> 16));
      } else {
        a[2 * half] = __byte_perm(v[i][2 * half][j], v[i][2 * half + 1][j], 0x5410);
        a[2 * half + 1] = __byte_perm(v[i][2 * half][j], v[i][2 * half + 1][j], 0x7632);
      }
    }
  }
};

// (m, l, o) of 8 kQTiles query rows over the keys that one warp has seen; m in powers of 2. Lane
// (g, t) holds rows 8 n + 2t and 8 n + 2t + 1; l counts only the lane's own keys.
template <typename S, int kQTiles, int kHeadDim>
struct WarpState {
  float m[kQTiles][2], l[kQTiles][2];
  float o[kQTiles][kHeadDim / 16][4];

  __device__ WarpState() {
#pragma unroll
    for (int n = 0; n < kQTiles; ++n) {
      m[n][0] = m[n][1] = -INFINITY;
      l[n][0] = l[n][1] = 0;
#pragma unroll
      for (int j = 0; j < kHeadDim / 16; ++j) o[n][j][0] = o[n][j][1] = o[n][j][2] = o[n][j][3] = 0;
    }
  }

  // Turns scores of the stage at `key` into weights relative to the new m. Every stage holds a key
  // of the segment, so m is finite afterwards.
  __device__ void AbsorbScores(float (&scores)[S::kTiles][kQTiles][4], float scale, int key,
                               const Segment& s) {
    const int g = threadIdx.x % kWarpSize / 4;
#pragma unroll
    for (int n = 0; n < kQTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float max = m[n][c];
#pragma unroll
        for (int i = 0; i < S::kTiles; ++i) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int at = key + i * 16 + r * 8 + g;
            float& score = scores[i][n][2 * r + c];
            score = s.key_begin <= at && at < s.key_end ? score * scale : -INFINITY;
            max = fmaxf(max, score);
          }
        }
#pragma unroll
        for (int lane = 4; lane < kWarpSize; lane *= 2) {
          max = fmaxf(max, __shfl_xor_sync(kFullWarp, max, lane));
        }
        const float rescale = Exp2(m[n][c] - max);
        m[n][c] = max;
        l[n][c] *= rescale;
#pragma unroll
        for (int j = 0; j < kHeadDim / 16; ++j) {
          o[n][j][c] *= rescale;
          o[n][j][c + 2] *= rescale;
        }
#pragma unroll
        for (int i = 0; i < S::kTiles; ++i) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            float& score = scores[i][n][2 * r + c];
            score = Exp2(score - max);
            l[n][c] += score;
          }
        }
      }
    }
  }

  // Takes in stages first_stage, first_stage + step, ... of the segment. `queries` are this warp's
  // fragments [kQTiles][kQChunks][32].
  template <typename KV>
  __device__ void TakeIn(const AttentionParams& p, const Segment& s, const uint4* queries,
                         float scale, int first_stage, int step) {
    using T = typename S::T;
    const int lane = threadIdx.x % kWarpSize;
    const int32_t* table = p.block_tables + int64_t{s.first_seq} * p.max_blocks;
    const int end_stage = CeilDiv(s.key_end, S::kStageKeys);
    if (first_stage >= end_stage) return;
    const auto block_of = [&](int stage) {
      return stage < end_stage ? table[stage * S::kStageKeys / kBlockKeys] : 0;
    };
    const auto offset_of = [&](int block, int stage) {
      const int row = stage * S::kStageKeys % kBlockKeys;
      return ((int64_t{block} * p.num_kv_heads + s.kv_head) * kBlockKeys + row) * S::kRowBytes;
    };
    const char* k_cache = static_cast<const char*>(p.k_cache);
    const char* v_cache = static_cast<const char*>(p.v_cache);

    StageRegisters<S> stage_registers;
    int64_t offset = offset_of(block_of(first_stage), first_stage);
    stage_registers.LoadK(k_cache + offset, first_stage * S::kStageKeys, s);
    stage_registers.LoadV(v_cache + offset, first_stage * S::kStageKeys, s);
    int next_block = block_of(first_stage + step);
    for (int stage = first_stage; stage < end_stage; stage += step) {
      const int key = stage * S::kStageKeys, next_key = key + step * S::kStageKeys;
      offset = offset_of(next_block, stage + step);
      next_block = block_of(stage + 2 * step);

      float scores[S::kTiles][kQTiles][4] = {};  // [keys g | g + 8, rows 2t | 2t + 1]
#pragma unroll
      for (int c = 0; c < S::kQChunks; ++c) {
        uint32_t a[S::kTiles][2][4];
#pragma unroll
        for (int i = 0; i < S::kTiles; ++i) {
          stage_registers.KFragment(i, 2 * c, a[i][0]);
          stage_registers.KFragment(i, 2 * c + 1, a[i][1]);
        }
#pragma unroll
        for (int n = 0; n < kQTiles; ++n) {
          const uint4 b = queries[(n * S::kQChunks + c) * kWarpSize + lane];
#pragma unroll
          for (int i = 0; i < S::kTiles; ++i) {
            Mma<T>(scores[i][n], a[i][0], b.x, b.y);
            Mma<T>(scores[i][n], a[i][1], b.z, b.w);
          }
        }
      }
      if (stage + step < end_stage) stage_registers.LoadK(k_cache + offset, next_key, s);

      AbsorbScores(scores, scale, key, s);
      uint32_t weights[S::kTiles][kQTiles][2];  // P^T [keys, rows] as B operand
#pragma unroll
      for (int i = 0; i < S::kTiles; ++i) {
#pragma unroll
        for (int n = 0; n < kQTiles; ++n) {
          const float(&w)[4] = scores[i][n];
          weights[i][n][0] = Transpose8x8(PackPair<T>(w[0], w[1]));
          weights[i][n][1] = Transpose8x8(PackPair<T>(w[2], w[3]));
        }
      }
#pragma unroll
      for (int j = 0; j < kHeadDim / 16; ++j) {
#pragma unroll
        for (int i = 0; i < S::kTiles; ++i) {
          uint32_t a[4];
          stage_registers.VFragment(i, j, a);
#pragma unroll
          for (int n = 0; n < kQTiles; ++n) Mma<T>(o[n][j], a, weights[i][n][0], weights[i][n][1]);
        }
      }
      if (stage + step < end_stage) stage_registers.LoadV(v_cache + offset, next_key, s);
    }
  }

  // To shared memory: (m, l) [8 kQTiles] and o [8 kQTiles, o_stride].
  __device__ void Store(float2* ml_out, float* o_out, int o_stride) {
    const int g = threadIdx.x % kWarpSize / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < kQTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int row = n * 8 + 2 * t + c;
        float sum = l[n][c];
#pragma unroll
        for (int lane = 4; lane < kWarpSize; lane *= 2) {
          sum += __shfl_xor_sync(kFullWarp, sum, lane);
        }
        if (g == 0) ml_out[row] = {m[n][c], sum};
#pragma unroll
        for (int j = 0; j < kHeadDim / 16; ++j) {
          *reinterpret_cast<float2*>(o_out + row * o_stride + S::OutputElement(j, g)) = {
              o[n][j][c], o[n][j][c + 2]};
        }
      }
    }
  }
};

// ---- Merging ---------------------------------------------------------------------------------

// A merged state of 4 of a row's elements.
struct MergedState {
  float m = -INFINITY, l = 0;
  float4 o = {0, 0, 0, 0};

  // Adds kCount states at once; those with m = -inf add nothing. REQUIRES: one of all is not empty.
  template <int kCount>
  __device__ void Add(const float2 (&ml)[kCount], const float4 (&part)[kCount]) {
    float max = m;
#pragma unroll
    for (int i = 0; i < kCount; ++i) max = fmaxf(max, ml[i].x);
    const auto scale = [&](float w) {
      l *= w;
      o = {o.x * w, o.y * w, o.z * w, o.w * w};
    };
    scale(Exp2(m - max));
    m = max;
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
    const uint2 packed = {PackPair<BF16>(o.x * w, o.y * w), PackPair<BF16>(o.z * w, o.w * w)};
    *reinterpret_cast<uint2*>(out) = packed;
  }
};

template <typename KV, int kHeadDim, int kQTiles, bool kShared>
struct DecodeKernel {
  using S = Shape<KV, kHeadDim>;
  static constexpr int kWarpRows = 8 * kQTiles;
  static constexpr int kRowTiles = kShared ? kSharedTileRows / 8 : kQTiles;
  static constexpr int kOStride = kHeadDim + 4;
  static constexpr int kColumns = kHeadDim / 4;  // of float4
  static_assert(!kShared || kWarpRows * kWarps == kSharedTileRows);

  struct Memory {
    union {
      uint4 queries[kRowTiles * S::kQChunks * kWarpSize];
      float o[kWarps][kWarpRows][kOStride];
    };
    float2 ml[kWarps][kWarpRows];
    int num_parts[kSharedTileRows];  // of each sequence's rows
    bool last[kSharedTileRows];
  };

  const AttentionParams& p;
  const Plan<kShared>& plan;
  const Parts& parts;
  Memory& memory;

  __device__ BF16* Output(int seq, int kv_head, int head) const {
    const int64_t row = int64_t{plan.Token(seq)} * p.num_heads + kv_head * p.HeadsPerKv() + head;
    return static_cast<BF16*>(p.o) + row * kHeadDim;
  }

  __device__ Segment MakeSegment(int at, int num_blocks, int& taken) const {
    const int per_head = plan.start[plan.num_entries()];
    Segment s;
    s.kv_head = at / per_head;
    at %= per_head;
    s.entry = plan.FindEntry(at);
    const int first = at - plan.start[s.entry];
    taken = min(plan.start[s.entry + 1] - at, num_blocks);
    s.shared = kShared && s.entry < p.num_seqs;
    if (s.shared) {
      s.first_seq = plan.group_start[plan.GroupOf(s.entry)];  // its table leads to the shared keys
      s.key_begin = first * kBlockKeys;
      s.key_end = s.key_begin + taken * kBlockKeys;
      return s;
    }
    s.first_seq = kShared ? s.entry - p.num_seqs : s.entry;
    int block = first;
    if constexpr (kShared) block += plan.prefix_len[plan.GroupOf(s.first_seq)] / kBlockKeys;
    const int begin = kShared ? 0 : plan.KeyBegin(s.first_seq);
    block += begin / kBlockKeys;
    s.key_begin = max(begin, block * kBlockKeys);
    s.key_end = min(plan.KeyEnd(s.first_seq), (block + taken) * kBlockKeys);
    return s;
  }

  // Rows of sequences [first, first + count) of the segment.
  struct Rows {
    int first, count;
  };
  __device__ Rows RowsOf(const Segment& s) const {
    if (!s.shared) return {s.first_seq, 1};
    const int group_end = plan.group_start[plan.GroupOf(s.entry) + 1];
    return {s.entry, min(plan.tile_seqs(), group_end - s.entry)};
  }

  __device__ void LoadQueries(const Segment& s, const Rows& rows) {
    const int heads = p.HeadsPerKv();
    const int num_tiles = s.shared ? kRowTiles : kQTiles;
    for (int i = threadIdx.x; i < num_tiles * S::kQChunks * kWarpSize; i += kThreads) {
      const int lane = i % kWarpSize, c = i / kWarpSize % S::kQChunks;
      const int row = i / kWarpSize / S::kQChunks * 8 + lane / 4;
      uint4 q = {0, 0, 0, 0};
      if (row < rows.count * heads) {
        const int64_t token = plan.Token(rows.first + row / heads);
        const BF16* from = static_cast<const BF16*>(p.q) + token * p.q_stride +
                           (s.kv_head * heads + row % heads) * kHeadDim +
                           S::QueryElement(c, lane % 4);
        q = *reinterpret_cast<const uint4*>(from);
      }
      memory.queries[i] = ConvertPairs<typename S::T>(q);
    }
  }

  // From the warps' states in shared memory to o, or to the workspace where a row has other parts.
  __device__ void WriteRows(const Segment& s, const Rows& rows, float v_scale) {
    const int heads = p.HeadsPerKv();
    const int slot = plan.Slot(s.kv_head, s.entry, blockIdx.x);
    for (int i = threadIdx.x; i < rows.count * heads * kColumns; i += kThreads) {
      const int row = i / kColumns, column = i % kColumns * 4;
      const int seq = rows.first + row / heads;
      MergedState state;
      if (s.shared) {
        const int w = row / kWarpRows, r = row % kWarpRows;
        const float2 ml[1] = {memory.ml[w][r]};
        const float4 o[1] = {*reinterpret_cast<const float4*>(&memory.o[w][r][column])};
        state.Add(ml, o);
      } else {
        float2 ml[kWarps];
        float4 o[kWarps];
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
          ml[w] = memory.ml[w][row];
          o[w] = *reinterpret_cast<const float4*>(&memory.o[w][row][column]);
        }
        state.Add(ml, o);
      }
      if (memory.num_parts[row / heads] == 1) {
        state.Write(Output(seq, s.kv_head, row % heads) + column, v_scale);
      } else {
        *reinterpret_cast<float4*>(parts.o + int64_t{slot + row} * kHeadDim + column) = state.o;
        if (column == 0) parts.ml[slot + row] = {state.m, state.l};
      }
    }
  }

  // Counts this thread block's part of every sequence of the segment; whoever is last merges.
  __device__ void MergeWhereLast(const Segment& s, const Rows& rows, float v_scale) {
    __threadfence();
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < rows.count) {
      const int num_parts = memory.num_parts[threadIdx.x];
      bool last = false;
      if (num_parts > 1) {
        int* counter = parts.counters + s.kv_head * p.num_seqs + rows.first + threadIdx.x;
        last = atomicAdd(counter, 1) == num_parts - 1;
        if (last) *counter = 0;  // for the next launch
      }
      memory.last[threadIdx.x] = last;
    }
    __syncthreads();
    for (int i = 0; i < rows.count; ++i) {
      if (memory.last[i]) {
        __threadfence();
        MergeParts(s.kv_head, rows.first + i, v_scale);
      }
    }
  }

  __device__ void MergeParts(int kv_head, int seq, float v_scale) {
    constexpr int kBatch = 8;  // loads in flight
    const int heads = p.HeadsPerKv();
    const auto shared = plan.SharedTakers(kv_head, seq);
    const auto own = plan.TakersOf(kv_head, plan.own_entry(seq));
    const int tile = kShared ? plan.TileStart(seq) : seq;
    const auto slot_of = [&](int part) {
      if (part < shared.count) {
        return plan.Slot(kv_head, tile, shared.first + part) + (seq - tile) * heads;
      }
      return plan.Slot(kv_head, plan.own_entry(seq), own.first + part - shared.count);
    };
    for (int i = threadIdx.x; i < heads * kColumns; i += kThreads) {
      const int head = i / kColumns, column = i % kColumns * 4;
      MergedState state;
      for (int part = 0; part < shared.count + own.count; part += kBatch) {
        float2 ml[kBatch];
        float4 o[kBatch];
#pragma unroll
        for (int k = 0; k < kBatch; ++k) {
          ml[k] = {-INFINITY, 0};
          o[k] = {0, 0, 0, 0};
          if (part + k < shared.count + own.count) {
            const int64_t slot = slot_of(part + k) + head;
            ml[k] = __ldcg(parts.ml + slot);
            o[k] = __ldcg(reinterpret_cast<const float4*>(parts.o + slot * kHeadDim + column));
          }
        }
        state.Add(ml, o);
      }
      state.Write(Output(seq, kv_head, head) + column, v_scale);
    }
  }

  __device__ void Run(const Segment& s) {
    const int warp = threadIdx.x / kWarpSize;
    const Rows rows = RowsOf(s);
    __syncthreads();  // the last segment's readers of shared memory
    LoadQueries(s, rows);
    if (static_cast<int>(threadIdx.x) < rows.count) {
      memory.num_parts[threadIdx.x] = plan.NumParts(s.kv_head, rows.first + threadIdx.x);
    }
    __syncthreads();

    const float k_scale = p.k_scale != nullptr ? p.k_scale[s.kv_head] : 1;
    const float v_scale = p.v_scale != nullptr ? p.v_scale[s.kv_head] : 1;
    const float scale = p.sm_scale * kLog2E * k_scale;
    const int first_stage = s.key_begin / S::kStageKeys;
    WarpState<S, kQTiles, kHeadDim> state;
    if (!s.shared) {
      state.template TakeIn<KV>(p, s, memory.queries, scale, first_stage + warp, kWarps);
    } else if (warp * kWarpRows < rows.count * p.HeadsPerKv()) {
      const uint4* queries = memory.queries + warp * kQTiles * S::kQChunks * kWarpSize;
      state.template TakeIn<KV>(p, s, queries, scale, first_stage, 1);
    }
    __syncthreads();  // o takes the place of the queries
    state.Store(memory.ml[warp], memory.o[warp][0], kOStride);
    __syncthreads();
    WriteRows(s, rows, v_scale);
    MergeWhereLast(s, rows, v_scale);
  }

  // Rows without keys are all zero.
  __device__ void WriteEmptyRows() {
    for (int seq = blockIdx.x; seq < p.num_seqs; seq += gridDim.x) {
      if (!plan.HasQuery(seq) || plan.NumParts(0, seq) > 0) continue;
      for (int i = threadIdx.x; i < p.num_heads * kHeadDim / 8; i += kThreads) {
        reinterpret_cast<uint4*>(Output(seq, 0, 0))[i] = {0, 0, 0, 0};
      }
    }
  }
};

template <typename KV, int kHeadDim, int kQTiles, bool kShared>
__global__ void __launch_bounds__(kThreads, kQTiles == 1 ? 3 : 2)
    DecodeAttentionKernel(AttentionParams p, Parts parts) {
  using Kernel = DecodeKernel<KV, kHeadDim, kQTiles, kShared>;
  extern __shared__ int plan_memory[];
  __shared__ alignas(16) typename Kernel::Memory memory;

  WaitForPrevious();
  Plan<kShared> plan(p, plan_memory);
  plan.Make();
  AllowNext();
  Kernel kernel{p, plan, parts, memory};
  kernel.WriteEmptyRows();
  int at = blockIdx.x * plan.stretch;
  const int end = min(at + plan.stretch, plan.num_blocks());
  while (at < end) {
    int taken;
    kernel.Run(kernel.MakeSegment(at, end - at, taken));
    at += taken;
  }
}

}  // namespace

int64_t DecodeWorkspaceBytes(int max_num_seqs, int num_heads, int head_dim) {
  const int64_t slot_bytes = head_dim * sizeof(float) + sizeof(float2);
  return kMaxCounters * sizeof(int) + NumSlots(max_num_seqs, num_heads) * slot_bytes;
}

void LaunchDecodeAttention(const AttentionParams& p, Stream stream) {
  CHECK_LE(p.num_seqs, kMaxSeqs);
  CHECK_LE(p.num_seqs * p.num_kv_heads, kMaxCounters);
  CHECK(p.workspace != nullptr) << "decode attention needs AttentionWorkspaceBytes of workspace";
  const Parts parts = LayOut(p.workspace, p.num_seqs, p.num_heads, p.head_dim);
  DispatchMmaAttention(p, [&]<typename KV, int kHeadDim>() {
    const auto launch = [&]<int kQTiles, bool kShared>() {
      const auto kernel = DecodeAttentionKernel<KV, kHeadDim, kQTiles, kShared>;
      const size_t bytes = Plan<kShared>::SharedBytes(p);
      int blocks_per_sm = 0;
      CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
      CUDA_CHECK(
          cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_per_sm, kernel, kThreads, bytes));
      const dim3 grid(NumSms() * std::min(blocks_per_sm, kMaxBlocksPerSm));
      Launch(kernel, grid, kThreads, bytes, stream, p, parts);
    };
    if (p.num_groups > 0) {
      launch.template operator()<2, true>();
    } else if (p.HeadsPerKv() <= 8) {
      launch.template operator()<1, false>();
    } else {
      launch.template operator()<2, false>();
    }
  });
}

}  // namespace bough::cuda
