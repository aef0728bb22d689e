// How a warp streams keys and values from the cache straight through the registers of tensor core
// instructions.
//
// A stage is 16 (bf16) or 32 (e4m3) keys of one warp. S^T = K Q^T and O^T = V^T P^T, so keys and
// values are the A operands and 8 query rows are enough to fill an instruction. Sums over head_dim
// and keys do not care about order, so lane (g, t) of a fragment takes whichever elements come in its
// own 16-byte loads: of K, pieces of the rows of keys g and g + 8; of V, pieces of the rows of keys
// 2t, 2t + 1, 2t + 8, 2t + 9, interleaved in registers. P^T needs one 8x8 transpose. A stage's
// registers are reloaded as soon as they have been used; other warps hide the latency.
#pragma once

#include "kernels/cuda/attention_plan.cuh"

namespace bough::cuda {

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

// Sizes, and which elements of the cache a lane takes.
template <typename KV, int kHeadDim>
struct StreamShape {
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

// A warp's way through every kDecodeWarps-th stage of a segment, one stage in registers.
template <typename S>
struct KeyStream {
  uint32_t k[S::kTiles][2][S::kKRegs];
  uint32_t v[S::kTiles][4][S::kVRegs];
  const char *k_cache, *v_cache;  // the KV head's part of block 0
  const int32_t* table;
  int64_t block_bytes, next_offset;
  int key_begin, key_end;
  int stage, next_block;  // next_block: of the stage after

  static constexpr int kStep = kDecodeWarps;

  __device__ bool HasStage() const { return stage * S::kStageKeys < key_end; }
  __device__ int Key() const { return stage * S::kStageKeys; }
  __device__ bool HasNext() const { return (stage + kStep) * S::kStageKeys < key_end; }

  __device__ int BlockOf(int of_stage) const {
    return of_stage * S::kStageKeys < key_end ? table[of_stage * S::kStageKeys / kBlockKeys] : 0;
  }
  __device__ int64_t Offset(int block, int of_stage) const {
    return block * block_bytes + of_stage * S::kStageKeys % kBlockKeys * S::kRowBytes;
  }

  // Loads the warp's first stage.
  __device__ void Start(const AttentionParams& p, const Segment& s) {
    const int64_t head_bytes = kBlockKeys * S::kRowBytes;
    k_cache = static_cast<const char*>(p.k_cache) + s.kv_head * head_bytes;
    v_cache = static_cast<const char*>(p.v_cache) + s.kv_head * head_bytes;
    table = p.block_tables + int64_t{s.table_seq} * p.max_blocks;
    block_bytes = p.num_kv_heads * head_bytes;
    key_begin = s.key_begin;
    key_end = s.key_end;
    stage = key_begin / S::kStageKeys + threadIdx.x / kWarpSize;
    if (!HasStage()) return;
    next_offset = Offset(BlockOf(stage), stage);
    LoadK(k_cache + next_offset, Key());
    LoadV(v_cache + next_offset, Key());
    next_block = BlockOf(stage + kStep);
  }
  __device__ void LoadNextK() {
    next_offset = Offset(next_block, stage + kStep);
    next_block = BlockOf(stage + 2 * kStep);
    if (HasNext()) LoadK(k_cache + next_offset, (stage + kStep) * S::kStageKeys);
  }
  __device__ void LoadNextV() {
    if (HasNext()) LoadV(v_cache + next_offset, (stage + kStep) * S::kStageKeys);
  }
  __device__ void Advance() { stage += kStep; }

  // `rows` is the stage's first key, which stands at position `key`.
  __device__ void LoadK(const char* rows, int key) {
    const int g = threadIdx.x % kWarpSize / 4, t = threadIdx.x % 4;
    const char* lane = rows + g * S::kRowBytes + t * 16;
#pragma unroll
    for (int i = 0; i < S::kTiles; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = i * 16 + r * 8;
        const bool wanted = key_begin <= key + row + g && key + row + g < key_end;
#pragma unroll
        for (int j = 0; j < S::kKRegs / 4; ++j) {
          LoadIf<16>(&k[i][r][4 * j], lane + row * S::kRowBytes + j * 64, wanted);
        }
      }
    }
  }

  __device__ void LoadV(const char* rows, int key) {
    const int g = threadIdx.x % kWarpSize / 4, t = threadIdx.x % 4;
    const char* lane = rows + 2 * t * S::kRowBytes + g * S::kVBytes;
#pragma unroll
    for (int i = 0; i < S::kTiles; ++i) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int row = i * 16 + r / 2 * 8 + r % 2;
        const bool wanted = key_begin <= key + row + 2 * t && key + row + 2 * t < key_end;
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

  // Takes in the segment's stages, of which `stream` has loaded the first. `queries` are fragments
  // [kQTiles][kQChunks][32].
  __device__ void TakeIn(KeyStream<S>& stream, const Segment& s, const uint4* queries,
                         float scale) {
    using T = typename S::T;
    const int lane = threadIdx.x % kWarpSize;
    for (; stream.HasStage(); stream.Advance()) {
      float scores[S::kTiles][kQTiles][4] = {};  // [keys g | g + 8, rows 2t | 2t + 1]
#pragma unroll
      for (int c = 0; c < S::kQChunks; ++c) {
        uint32_t a[S::kTiles][2][4];
#pragma unroll
        for (int i = 0; i < S::kTiles; ++i) {
          stream.KFragment(i, 2 * c, a[i][0]);
          stream.KFragment(i, 2 * c + 1, a[i][1]);
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
      stream.LoadNextK();

      AbsorbScores(scores, scale, stream.Key(), s);
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
          stream.VFragment(i, j, a);
#pragma unroll
          for (int n = 0; n < kQTiles; ++n) Mma<T>(o[n][j], a, weights[i][n][0], weights[i][n][1]);
        }
      }
      stream.LoadNextV();
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

// The four warps of a thread block over one segment of at most 8 kQTiles rows: they share the
// queries, take every fourth stage each, and merge their states through shared memory.
template <typename KV, int kHeadDim, int kQTiles>
struct StreamKernel {
  using S = StreamShape<KV, kHeadDim>;
  using State = WarpState<S, kQTiles, kHeadDim>;
  static constexpr int kRows = 8 * kQTiles;
  static constexpr int kOStride = kHeadDim + 4;
  static constexpr int kColumns = kHeadDim / 4;  // of float4

  struct Memory {
    union {
      uint4 queries[kQTiles * S::kQChunks * kWarpSize];
      float o[kDecodeWarps][kRows][kOStride];
    };
    float2 ml[kDecodeWarps][kRows];
    int num_parts[kRows], num_streams[kRows];  // of each sequence's rows
    bool last[kRows];
  };

  // Waits for the memory's last readers; the next to touch it synchronises.
  __device__ static void LoadQueries(const AttentionParams& p, const Segment& s, Memory& memory) {
    const int heads = p.HeadsPerKv();
    __syncthreads();
    for (int i = threadIdx.x; i < kQTiles * S::kQChunks * kWarpSize; i += kDecodeThreads) {
      const int lane = i % kWarpSize, c = i / kWarpSize % S::kQChunks;
      const int row = i / kWarpSize / S::kQChunks * 8 + lane / 4;
      uint4 q = {0, 0, 0, 0};
      if (row < s.num_seqs * heads) {
        const int token = p.FirstToken(s.first_seq + row / heads);
        q = *reinterpret_cast<const uint4*>(p.Query(token, s.kv_head * heads + row % heads) +
                                            S::QueryElement(c, lane % 4));
      }
      memory.queries[i] = ConvertPairs<typename S::T>(q);
    }
  }

  // Leaves the warps' states in shared memory.
  __device__ static void TakeIn(KeyStream<S>& stream, const Segment& s, float scale,
                                Memory& memory) {
    const int warp = threadIdx.x / kWarpSize;
    __syncthreads();  // the queries' writers
    State state;
    state.TakeIn(stream, s, memory.queries, scale);
    __syncthreads();  // o takes the place of the queries
    state.Store(memory.ml[warp], memory.o[warp][0], kOStride);
    __syncthreads();
  }

  // The warps' states of 4 elements of a row as one.
  __device__ static MergedState Merge(const Memory& memory, int row, int column) {
    float2 ml[kDecodeWarps];
    float4 o[kDecodeWarps];
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) {
      ml[w] = memory.ml[w][row];
      o[w] = *reinterpret_cast<const float4*>(&memory.o[w][row][column]);
    }
    MergedState state;
    state.Add(ml, o);
    return state;
  }
};

}  // namespace bough::cuda
