// The stream kernel: up to 16 query rows over many keys, bound by how fast the cache can be read.
//
// A producer warp walks the thread block's parts and keeps a ring of stages full, each a block of 64
// keys and values as TMA lays it down, so that short parts stream as long ones do; the first stage of
// a part brings its queries too. Four consumer warps take 16 keys of every stage each, with tensor
// core instructions from registers (mma): a warp needs nothing of the others until the part ends, when
// their states are merged through the stage's memory. S^T = K Q^T and O^T = V^T P^T, so that 8 query
// rows fill an instruction. Two or three thread blocks an SM hide what a part's end takes.
//
// An e4m3 cache is widened to f16 in registers, which is exact and costs a quarter of the time that the
// memory leaves; Hopper's e4m3 products need wgmma, which needs weights in shared memory. So
// fp8_products makes no difference here.
#pragma once

#include "kernels/cuda/attention_merge.cuh"
#include "kernels/cuda/sm90.cuh"
#include "kernels/cuda/tensor_map.h"

namespace bough::cuda {

inline constexpr int kConsumerWarps = 4;
inline constexpr int kConsumers = kConsumerWarps * kWarpSize;
inline constexpr int kStreamThreads = kConsumers + kWarpSize;

// kQTiles: of 8 query rows. kCtas: thread blocks an SM.
template <typename KV, int kHeadDim, int kQTiles, int kCtas>
struct StreamShape {
  using Element = KV;
  using T = MmaType<KV>;
  static constexpr bool kWidens = sizeof(KV) == 1;
  static constexpr int kDim = kHeadDim, kTiles = kQTiles, kPerSm = kCtas;
  static constexpr int kRows = 8 * kQTiles;
  static constexpr int kRowBytes = kHeadDim * sizeof(KV);
  static constexpr int kMatrixBytes = kBlockKeys * kRowBytes;  // a block's K or V
  // Boxes of K [64 keys, kBoxBytes]; bf16 V as K; e4m3 V [kHeadDim, 64 keys], one box.
  static constexpr int kBoxBytes = kRowBytes < 128 ? kRowBytes : 128;
  static constexpr int kBoxes = kRowBytes / kBoxBytes;
  static constexpr int kBoxSize = kBlockKeys * kBoxBytes;
  // Padded so that a warp's fragments of queries meet all banks.
  static constexpr int kQueryStride = kHeadDim * 2 + (kWidens ? 32 : 16);
  static constexpr int kQueryBytes = kRows * kQueryStride;
  static constexpr int kSmBytes = 228 * 1024, kReservedBytes = 1024, kMaxBytes = 227 * 1024;
  static constexpr int kBytes =
      kSmBytes / kCtas - kReservedBytes < kMaxBytes ? kSmBytes / kCtas - kReservedBytes : kMaxBytes;
  static constexpr int kInfoBytes = 96 + 16 * kStreamRows;
  static constexpr int kFixedBytes = 2048;
  static constexpr int kStagesThatFit =
      (kBytes - kFixedBytes) / (2 * kMatrixBytes + kQueryBytes + kInfoBytes + 16);
  static constexpr int kStages = kStagesThatFit < 8 ? kStagesThatFit : 8;
  static_assert(kStages >= 2, "a stage is read while another one is filled");
};

// What the producer says of a stage.
struct alignas(16) StageInfo {
  enum : int32_t { kFirst = 1, kLast = 2, kHasKeys = 4, kMasked = 8, kEnd = 16 };
  int32_t flags;
  int32_t key;  // position of the block's first
  int32_t num_rows;
  WorkPart part;
  struct alignas(16) Unit {
    int32_t token, position, num_blocks, unused;
  } units[kStreamRows];  // the part's, as WorkUnit
};

template <typename S>
struct StreamShared {
  alignas(1024) uint8_t keys_values[S::kStages][2 * S::kMatrixBytes];
  alignas(16) uint8_t queries[S::kStages][S::kQueryBytes];
  StageInfo info[S::kStages];
  float2 ml[kConsumerWarps][S::kRows];
  FinishMemory finish;
  uint64_t full[S::kStages], empty[S::kStages];
};

// A stage of the ring and the parity of its barriers' phase.
template <int kStages>
struct StagePosition {
  int stage = 0;
  uint32_t phase = 0;
  __device__ void Advance() {
    if (++stage < kStages) return;
    stage = 0;
    phase ^= 1;
  }
};

// The warp that fills the ring.
template <typename S>
struct StreamProducer {
  const AttentionParams& p;
  const WorkPlan& plan;
  const CUtensorMap& k_map;
  const CUtensorMap& v_map;
  StreamShared<S>& shared;
  const int lane = threadIdx.x % kWarpSize;
  const uint64_t policy = EvictFirst();
  StagePosition<S::kStages> at = {};

  // Lane i gets the i-th block from `block` on of a part's.
  __device__ int TableEntry(const WorkPart& part, int block) const {
    const int i = block + lane;
    if (i >= part.block_end) return 0;
    return p
        .block_tables[int64_t{part.entry.table_seq} * p.max_blocks + part.entry.FirstBlock() + i];
  }
  // Lane r gets the unit of a part's row r.
  __device__ StageInfo::Unit UnitOfRow(const WorkPart& part) const {
    StageInfo::Unit unit = {-1, 0, 0, 0};
    const int heads = p.HeadsPerKv();
    if (lane < part.NumRows(heads)) {
      const WorkUnit* from = plan.units + part.entry.first_unit + lane / heads;
      const int4 head = __ldg(reinterpret_cast<const int4*>(from));
      unit = {head.x, head.y, head.z, 0};
    }
    return unit;
  }

  __device__ int Flags(const WorkPart& part, int block) const {
    const int key = (part.entry.FirstBlock() + block) * kBlockKeys;
    int flags = 0;
    if (block == part.block_begin) flags |= StageInfo::kFirst;
    if (block >= part.block_end - 1) flags |= StageInfo::kLast;
    if (block < part.block_end) flags |= StageInfo::kHasKeys;
    const int first_seen = part.entry.key_end - part.entry.num_units + 1;  // of the first query
    if (part.entry.is_own && key + kBlockKeys > first_seen) flags |= StageInfo::kMasked;
    if (p.sliding_window > 0 &&
        (!part.entry.is_own || key < part.entry.key_end - p.sliding_window)) {
      flags |= StageInfo::kMasked;
    }
    return flags;
  }

  __device__ void Fill(const WorkPart& part, int block, int table_entry,
                       const StageInfo::Unit& unit) {
    const int heads = p.HeadsPerKv(), num_rows = part.NumRows(heads);
    uint64_t* full = &shared.full[at.stage];
    const int flags = Flags(part, block);
    const bool has_keys = flags & StageInfo::kHasKeys;
    const bool copies_row = has_keys && (flags & StageInfo::kFirst) && unit.token >= 0;
    const int num_copies = __popc(__ballot_sync(kFullWarp, copies_row));
    Wait(&shared.empty[at.stage], at.phase ^ 1);
    StageInfo& info = shared.info[at.stage];
    if (lane < num_rows && lane % heads == 0) info.units[lane / heads] = unit;
    __syncwarp();
    if (lane == 0) {
      info.flags = flags;
      info.key = (part.entry.FirstBlock() + block) * kBlockKeys;
      info.num_rows = num_rows;
      info.part = part;
      ArriveExpectBytes(full, (has_keys ? 2 * S::kMatrixBytes : 0) + num_copies * S::kDim * 2);
      if (has_keys) CopyBlock(part.kv_head, table_entry, full);
    }
    __syncwarp();
    if (copies_row) {
      CopyBytes(shared.queries[at.stage] + lane * S::kQueryStride,
                p.Query(unit.token, part.kv_head * heads + lane % heads), S::kDim * 2, full);
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
      CopyBox(to, &v_map, 0, head * S::kDim, full, policy);
    } else {
#pragma unroll
      for (int box = 0; box < S::kBoxes; ++box) {
        CopyBox(to + box * S::kBoxSize, &v_map, box * S::kBoxBytes, head * kBlockKeys, full,
                policy);
      }
    }
  }

  __device__ void Run(bool waits) {
    WorkWalk walk(plan, kStreamWork);
    WorkPart part, next;
    bool more = walk.Next(part);
    int blocks = more ? TableEntry(part, part.block_begin) : 0;
    StageInfo::Unit unit = {}, next_unit = {};
    if (more) unit = UnitOfRow(part);
    if (waits) WaitForPrevious();
    while (more) {
      // What the next part needs is on its way while this one's copies wait for room.
      const bool more_next = walk.Next(next);
      if (more_next) next_unit = UnitOfRow(next);
      int block = part.block_begin;
      do {
        int ahead = 0;
        if (block + kWarpSize < part.block_end) {
          ahead = TableEntry(part, block + kWarpSize);
        } else if (more_next) {
          ahead = TableEntry(next, next.block_begin);
        }
        const int count = max(1, min(kWarpSize, part.block_end - block));
        for (int i = 0; i < count; ++i) {
          Fill(part, block + i, __shfl_sync(kFullWarp, blocks, i), unit);
        }
        blocks = ahead;
        block += kWarpSize;
      } while (block < part.block_end);
      more = more_next;
      part = next;
      unit = next_unit;
    }
    Wait(&shared.empty[at.stage], at.phase ^ 1);
    if (lane == 0) {
      shared.info[at.stage].flags = StageInfo::kEnd;
      Arrive(&shared.full[at.stage]);
    }
  }
};

// Four 8x8 matrices of 16-bit elements whose rows' addresses the lanes name: lane 8 i + r row r of
// matrix i. Lane (g, t) gets columns 2t, 2t + 1 of row g; transposed, rows 2t, 2t + 1 of column g.
__device__ inline void LoadFragments(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ inline void LoadFragmentsTransposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// One of the four warps that read the ring. Lane (g, t) holds, of tile n of 8 query rows, rows 2t and
// 2t + 1 (index c): m and l of them (l of the lane's own keys only) and o^T of elements 16 j + g and
// + 8 in o[n][j][c] and [c + 2].
template <typename S>
struct StreamConsumer {
  using T = typename S::T;
  static constexpr int kSteps = S::kDim / 16;  // of 16 elements
  static constexpr int kColumns = S::kDim / 4;

  const AttentionParams& p;
  const WorkPlan& plan;
  StreamShared<S>& shared;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int g = lane / 4, t = lane % 4;
  int kv_head = -1;  // whose scale this is
  float scale = 0;
  uint32_t q[S::kTiles][kSteps][2];
  float m[S::kTiles][2], l[S::kTiles][2];
  float o[S::kTiles][kSteps][4];

  __device__ static void Sync() { SyncThreads(1, kConsumers); }

  __device__ void TakeHead(int head) {
    if (head == kv_head) return;
    kv_head = head;
    scale = p.ScoreScale(head);
  }

  // Of an e4m3 cache, elements are taken in the order of K's bytes: lane t's four of 16 stand together.
  __device__ void LoadQueries(int stage) {
    const uint8_t* rows = shared.queries[stage] + g * S::kQueryStride;
#pragma unroll
    for (int n = 0; n < S::kTiles; ++n) {
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        const uint8_t* at = rows + n * 8 * S::kQueryStride + j * 32;
        if constexpr (S::kWidens) {
          const uint2 pairs = *reinterpret_cast<const uint2*>(at + t * 8);
          q[n][j][0] = ConvertPair<T>(pairs.x);
          q[n][j][1] = ConvertPair<T>(pairs.y);
        } else {
          q[n][j][0] = *reinterpret_cast<const uint32_t*>(at + t * 4);
          q[n][j][1] = *reinterpret_cast<const uint32_t*>(at + t * 4 + 16);
        }
      }
    }
  }

  // Nothing of a part is left, so that its registers are free while it is written.
  __device__ void Clear() {
#pragma unroll
    for (int n = 0; n < S::kTiles; ++n) {
      m[n][0] = m[n][1] = -INFINITY;
      l[n][0] = l[n][1] = 0;
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        q[n][j][0] = q[n][j][1] = 0;
        o[n][j][0] = o[n][j][1] = o[n][j][2] = o[n][j][3] = 0;
      }
    }
  }

  // s = products of the warp's 16 keys (g, g + 8) and the query rows.
  __device__ void Scores(int stage, int num_rows, float (&s)[S::kTiles][4]) const {
    constexpr int kChains = S::kTiles == 1 ? 4 : 2;  // sums that do not wait for each other
    float sums[S::kTiles][kChains][4] = {};
    const int row = 16 * warp + lane % 16, chunk = lane / 16;
    const uint32_t base = SharedAddress(shared.keys_values[stage]) + row * S::kBoxBytes +
                          (S::kBoxBytes == 128 ? chunk ^ row % 8 : chunk ^ row / 2 % 4) * 16;
    const auto multiply = [&](const uint32_t(&a)[4], int step) {
#pragma unroll
      for (int n = 0; n < S::kTiles; ++n) {
        if (n == 0 || num_rows > 8 * n) {
          Mma<T>(sums[n][step % kChains], a, q[n][step][0], q[n][step][1]);
        }
      }
    };
    constexpr int kPairs = S::kRowBytes / 32;  // of chunks
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      constexpr int kBoxPairs = S::kBoxBytes / 32;
      uint32_t r[4];
      LoadFragments(r, (base ^ i % kBoxPairs * 32) + i / kBoxPairs * S::kBoxSize);
      if constexpr (S::kWidens) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t a[4] = {WidenPair(static_cast<uint16_t>(r[2 * half])),
                                 WidenPair(static_cast<uint16_t>(r[2 * half + 1])),
                                 WidenPair(static_cast<uint16_t>(r[2 * half] >> 16)),
                                 WidenPair(static_cast<uint16_t>(r[2 * half + 1] >> 16))};
          multiply(a, 2 * i + half);
        }
      } else {
        multiply(r, i);
      }
    }
#pragma unroll
    for (int n = 0; n < S::kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[n][i] = 0;
#pragma unroll
        for (int chain = 0; chain < kChains; ++chain) s[n][i] += sums[n][chain][i];
      }
    }
  }

  // Scores of keys that a row does not see become -inf.
  __device__ void Mask(const StageInfo& info, float (&s)[S::kTiles][4]) const {
    const int heads = p.HeadsPerKv();
#pragma unroll
    for (int n = 0; n < S::kTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int row = 8 * n + 2 * t + c;
        const int position = row < info.num_rows ? info.units[row / heads].position : 0;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int key = info.key + 16 * warp + g + 8 * r;
          const bool seen =
              key <= position && (p.sliding_window == 0 || key > position - p.sliding_window);
          if (!seen) s[n][2 * r + c] = -INFINITY;
        }
      }
    }
  }

  // Turns scores of tile n into weights relative to its rows' new m.
  __device__ void AbsorbScores(int n, float (&s)[4]) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float max = fmaxf(s[c], s[c + 2]);
#pragma unroll
      for (int other = 4; other < kWarpSize; other *= 2) {
        max = fmaxf(max, __shfl_xor_sync(kFullWarp, max, other));
      }
      max = fmaxf(m[n][c], max * scale);
      const float finite_max = max == -INFINITY ? 0 : max;  // no key of 16 may be seen
      const float rescale = Exp2(m[n][c] - finite_max);
      m[n][c] = max;
      s[c] = Exp2(s[c] * scale - finite_max);
      s[c + 2] = Exp2(s[c + 2] * scale - finite_max);
      l[n][c] = l[n][c] * rescale + s[c] + s[c + 2];
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        o[n][j][c] *= rescale;
        o[n][j][c + 2] *= rescale;
      }
    }
  }

  // o += V^T weights of the warp's 16 keys.
  __device__ void AddWeighted(int stage, int num_rows, const uint32_t (&weights)[S::kTiles][2]) {
    const uint32_t values = SharedAddress(shared.keys_values[stage]) + S::kMatrixBytes;
    const auto multiply = [&](const uint32_t(&a)[4], int j) {
#pragma unroll
      for (int n = 0; n < S::kTiles; ++n) {
        if (n == 0 || num_rows > 8 * n) Mma<T>(o[n][j], a, weights[n][0], weights[n][1]);
      }
    };
    if constexpr (S::kWidens) {
      const uint32_t base = values + lane * kBlockKeys + (warp ^ lane / 2 % 4) * 16;
#pragma unroll
      for (int i = 0; i < S::kDim / 32; ++i) {
        uint32_t r[4];
        LoadFragments(r, base + i * 32 * kBlockKeys);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t a[4] = {WidenPair(static_cast<uint16_t>(r[2 * half])),
                                 WidenPair(static_cast<uint16_t>(r[2 * half + 1])),
                                 WidenPair(static_cast<uint16_t>(r[2 * half] >> 16)),
                                 WidenPair(static_cast<uint16_t>(r[2 * half + 1] >> 16))};
          multiply(a, 2 * i + half);
        }
      }
    } else {
      const int row = 16 * warp + lane % 8 + lane / 16 * 8, chunk = lane / 8 % 2;
      const uint32_t base = values + row * 128 + (chunk ^ row % 8) * 16;
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        uint32_t a[4];
        LoadFragmentsTransposed(a, (base ^ j % 4 * 32) + j / 4 * S::kBoxSize);
        multiply(a, j);
      }
    }
  }

  __device__ void TakeIn(int stage, const StageInfo& info) {
    float s[S::kTiles][4];
    Scores(stage, info.num_rows, s);
    if (info.flags & StageInfo::kMasked) Mask(info, s);
    uint32_t weights[S::kTiles][2];  // P^T [keys, rows] as B operand
#pragma unroll
    for (int n = 0; n < S::kTiles; ++n) {
      if (n > 0 && info.num_rows <= 8 * n) continue;
      AbsorbScores(n, s[n]);
      weights[n][0] = Transpose8x8(PackPair<T>(s[n][0], s[n][1]));
      weights[n][1] = Transpose8x8(PackPair<T>(s[n][2], s[n][3]));
    }
    AddWeighted(stage, info.num_rows, weights);
  }

  // Merges the four warps' states of tile n through the stage's memory, and writes its rows: to o if
  // the part is all there is for its units, else to the part's slot.
  __device__ void WriteTile(int n, int stage, const StageInfo& info, bool complete) {
    float* const memory = reinterpret_cast<float*>(shared.keys_values[stage]);
    const auto place = [&](int of_warp, int row, int column) {
      return memory + (of_warp * 8 + row) * S::kDim + (column ^ row / 2 * 8);
    };
    Sync();  // the stage's readers, or the last tile's
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float sum = l[n][c];
#pragma unroll
      for (int other = 4; other < kWarpSize; other *= 2) {
        sum += __shfl_xor_sync(kFullWarp, sum, other);
      }
      if (g == 0) shared.ml[warp][2 * t + c] = {m[n][c], sum};
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        *place(warp, 2 * t + c, 16 * j + g) = o[n][j][c];
        *place(warp, 2 * t + c, 16 * j + g + 8) = o[n][j][c + 2];
      }
    }
    Sync();
    const int heads = p.HeadsPerKv(), num_rows = min(8, info.num_rows - 8 * n);
    for (int i = threadIdx.x; i < num_rows * kColumns; i += kConsumers) {
      const int row = i / kColumns, column = i % kColumns * 4;
      float2 ml[kConsumerWarps];
      float4 part[kConsumerWarps];
#pragma unroll
      for (int w = 0; w < kConsumerWarps; ++w) {
        ml[w] = shared.ml[w][row];
        part[w] = *reinterpret_cast<const float4*>(place(w, row, column));
      }
      MergedState state;
      state.Add(ml, part);
      const int of_part = 8 * n + row, token = info.units[of_part / heads].token;
      if (complete && token >= 0) {
        state.Write(p.Output(token, kv_head * heads + of_part % heads) + column, p.VScale(kv_head));
      } else if (!complete) {
        float* slot = plan.Slot(info.part.slot + of_part, S::kDim);
        *reinterpret_cast<float4*>(slot + column) = state.o;
        if (column == 0) *reinterpret_cast<float2*>(slot + S::kDim) = {state.m, state.l};
      }
    }
  }

  __device__ void Finish(int stage, const StageInfo& info) {
    const WorkPart& part = info.part;
    const int num_blocks = max(1, part.block_end - part.block_begin);
    const bool complete = part.entry.is_own && info.units[0].num_blocks == num_blocks;
#pragma unroll
    for (int n = 0; n < S::kTiles; ++n) {
      if (n == 0 || info.num_rows > 8 * n) WriteTile(n, stage, info, complete);
    }
    if (!complete) {
      FinishPart(
          p, plan, part, shared.finish, threadIdx.x, kConsumers,
          [&](int i) { return info.units[i]; }, Sync);
    }
    FenceAsyncProxy();  // the next copy writes where this one wrote
  }

  __device__ void Run() {
    StagePosition<S::kStages> at;
    Clear();
    while (true) {
      Wait(&shared.full[at.stage], at.phase);
      const StageInfo& info = shared.info[at.stage];
      const int flags = info.flags;
      if (flags & StageInfo::kEnd) return;
      if (flags & StageInfo::kFirst) {
        TakeHead(info.part.kv_head);
        LoadQueries(at.stage);
      }
      if (flags & StageInfo::kHasKeys) TakeIn(at.stage, info);
      if (flags & StageInfo::kLast) {
        Finish(at.stage, info);
        Clear();
      }
      __syncwarp();
      if (lane == 0) Arrive(&shared.empty[at.stage]);
      at.Advance();
    }
  }
};

// after_tiles: the tile kernel is the one before on the stream, and what came before it has ended.
template <typename S>
__global__ void __launch_bounds__(kStreamThreads, S::kPerSm)
    StreamAttentionKernel(const __grid_constant__ CUtensorMap k_map,
                          const __grid_constant__ CUtensorMap v_map,
                          const __grid_constant__ AttentionParams p,
                          const __grid_constant__ WorkPlan plan, bool after_tiles) {
  extern __shared__ __align__(1024) uint8_t shared_bytes[];
  StreamShared<S>& shared = *reinterpret_cast<StreamShared<S>*>(shared_bytes);
  if (threadIdx.x == kConsumers) {
    PrefetchTensorMap(&k_map);
    PrefetchTensorMap(&v_map);
    for (int i = 0; i < S::kStages; ++i) {
      InitBarrier(&shared.full[i], 1);
      InitBarrier(&shared.empty[i], kConsumerWarps);
    }
    FenceBarrierInit();
  }
  AllowNext();
  __syncthreads();
  if (threadIdx.x >= kConsumers) {
    StreamProducer<S>{p, plan, k_map, v_map, shared}.Run(!after_tiles);
  } else {
    if (!after_tiles) WaitForPrevious();
    StreamConsumer<S> consumer{p, plan, shared};
    consumer.TakeHead(plan.starts[kStreamWork * (WorkPlan::kMaxGrid + 1) + blockIdx.x].kv_head %
                      p.num_kv_heads);
    consumer.Run();
  }
  if (after_tiles) WaitForPrevious();  // who waits for this kernel means both
}

}  // namespace bough::cuda
