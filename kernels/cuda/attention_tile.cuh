// A thread block's tile of attention: 128 query rows of one KV head over blocks of 64 keys that pass
// through shared memory, the next one on its way while this one is at work. Its four warps hold 32
// rows each. An e4m3 block is widened to f16 in shared memory first. Scores and sums are f32, weights
// are rounded to the multiplied type; a row's bits depend on its own query and keys alone.
#pragma once

#include "kernels/cuda/attention_kernels.cuh"

namespace bough::cuda {

// Rows of kHeadDim 16-bit elements in shared memory. Chunk c of row r lies at chunk c ^ (r % 8), so
// eight rows at one column meet all banks.
template <int kHeadDim>
__device__ uint32_t ChunkOffset(int row, int chunk) {
  return row * kHeadDim * 2 + (chunk ^ row % 8) * 16;
}

// Four 8x8 matrices whose rows' addresses the lanes name: lane 8 i + r row r of matrix i.
__device__ inline void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ inline void LoadMatricesTransposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Starts a copy of 16 bytes, or of zeros.
__device__ inline void CopyAsync(uint32_t to, const char* from, bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(wanted ? 16 : 0)
               : "memory");
}
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Rows says whose rows they are:
//   int num_rows                      at most kRows, of this tile
//   const BF16* Query(int row)
//   constexpr int kStepKeys           keys whose scores a warp holds at a time: 32 or 64
//   constexpr bool kSeeAll            all rows see all keys of all blocks; if not,
//   int KeyBegin(int row), KeyEnd(int row)   the keys that the row sees; both ascend with the row
template <typename KV, int kHeadDim, typename Rows>
struct AttentionTile {
  using T = MmaType<KV>;
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kWarpRows = 32;
  static constexpr int kStepKeys = Rows::kStepKeys;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kChunkBytes = 16;  // shared memory's unit: 8 elements
  static constexpr bool kWiden = sizeof(KV) == 1;
  static constexpr int kSteps = kHeadDim / 16;
  static constexpr int kRowBytes = kHeadDim * 2;
  static constexpr int kTileBytes = kBlockKeys * kHeadDim * 2;          // K or V, 16-bit
  static constexpr int kRawBytes = kBlockKeys * kHeadDim * sizeof(KV);  // as in the cache
  // [queries] [K, V of block j] [K, V of block j + 1, as in the cache]; without widening the last
  // two change places.
  static constexpr int kQueryBytes = kRows * kHeadDim * 2;
  static constexpr int kSharedBytes = kQueryBytes + 2 * kTileBytes + 2 * kRawBytes;

  const AttentionParams& p;
  const Rows rows;
  const int kv_head;
  const int num_keys;    // of the sequence; the cache holds nothing behind them
  const int32_t* table;  // its blocks
  char* const shared;    // [kSharedBytes], aligned to 256 bytes
  const uint32_t shared_address;

  int warp_row = threadIdx.x / kWarpSize * kWarpRows;
  int lane = threadIdx.x % kWarpSize;
  float m[2][2], l[2][2];  // of rows 16 i + 8 r + lane / 4 of the warp
  float o[2][kHeadDim / 8][4] = {};

  __device__ void LoadQueries() const {
    constexpr int kChunks = kHeadDim / 8;
    for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      uint4 q = {0, 0, 0, 0};
      if (row < rows.num_rows) q = *reinterpret_cast<const uint4*>(rows.Query(row) + chunk * 8);
      *reinterpret_cast<uint4*>(shared + ChunkOffset<kHeadDim>(row, chunk)) = ConvertPairs<T>(q);
    }
  }

  // Starts copying K and V of a block of the cache; keys past the sequence's end become zeros.
  __device__ void StartCopy(int block_idx, int32_t block, int to) const {
    constexpr unsigned kRowChunks = kHeadDim * sizeof(KV) / kChunkBytes;
    constexpr unsigned kRowsAtOnce = kThreads / kRowChunks;
    static_assert(kRowsAtOnce % 8 == 0, "a thread's chunks are swizzled alike");
    const unsigned row = threadIdx.x / kRowChunks, chunk = threadIdx.x % kRowChunks;
    const int64_t offset =
        (int64_t{block} * p.num_kv_heads + kv_head) * kRawBytes + threadIdx.x * kChunkBytes;
    const char* k = static_cast<const char*>(p.k_cache) + offset;
    const char* v = static_cast<const char*>(p.v_cache) + offset;
    const int num_rows = num_keys - block_idx * kBlockKeys - static_cast<int>(row);
    to += shared_address + (kWiden ? threadIdx.x * kChunkBytes : ChunkOffset<kHeadDim>(row, chunk));
#pragma unroll
    for (int i = 0; i < kBlockKeys / static_cast<int>(kRowsAtOnce); ++i) {
      const int rows_on = i * kRowsAtOnce, at = rows_on * kRowChunks * kChunkBytes;
      CopyAsync(to + at, k + at, rows_on < num_rows);
      CopyAsync(to + kRawBytes + at, v + at, rows_on < num_rows);
    }
    CommitCopies();
  }

  // Widens an e4m3 block, K and V.
  __device__ void Widen(int from, int to) const {
    constexpr int kRowChunks = kHeadDim / kChunkBytes;  // of 16 elements
#pragma unroll
    for (int i = threadIdx.x; i < 2 * kBlockKeys * kRowChunks; i += kThreads) {
      const int row = i / kRowChunks, chunk = i % kRowChunks;  // rows of K, then rows of V
      const uint4 raw = *reinterpret_cast<const uint4*>(shared + from + i * kChunkBytes);
      const auto widen = [](uint32_t low, uint32_t high) -> uint4 {
        return {WidenPair(static_cast<uint16_t>(low)), WidenPair(static_cast<uint16_t>(low >> 16)),
                WidenPair(static_cast<uint16_t>(high)),
                WidenPair(static_cast<uint16_t>(high >> 16))};
      };
      char* out = shared + to;
      *reinterpret_cast<uint4*>(out + ChunkOffset<kHeadDim>(row, 2 * chunk)) = widen(raw.x, raw.y);
      *reinterpret_cast<uint4*>(out + ChunkOffset<kHeadDim>(row, 2 * chunk + 1)) =
          widen(raw.z, raw.w);
    }
  }

  // s = Q K^T for the warp's rows and the kStepKeys keys at `k` in shared memory. Matrices at chunk 2 step
  // lie at those of chunk 0, bits flipped: rows are aligned to their size.
  __device__ void Scores(float (&s)[2][kStepKeys / 8][4], int k) const {
    uint32_t queries = shared_address + ChunkOffset<kHeadDim>(warp_row + lane % 16, lane / 16);
    const uint32_t keys =
        shared_address + k + ChunkOffset<kHeadDim>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
    asm volatile("" : "+r"(queries));  // or the addresses of all steps are kept for the next block
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) LoadMatrices(a[i], (queries ^ step * 32) + i * 16 * kRowBytes);
#pragma unroll
      for (int n = 0; n < kStepKeys / 16; ++n) {  // 16 keys
        uint32_t b[4];
        LoadMatrices(b, (keys ^ step * 32) + n * 16 * kRowBytes);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          Mma<T>(s[i][2 * n], a[i], b[0], b[1]);
          Mma<T>(s[i][2 * n + 1], a[i], b[2], b[3]);
        }
      }
    }
  }

  // Keys that a row does not see get -inf.
  __device__ void Mask(float (&s)[2][kStepKeys / 8][4], int first_key) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = warp_row + 16 * i + 8 * r + lane / 4;
        const int begin = rows.KeyBegin(row), end = rows.KeyEnd(row);
#pragma unroll
        for (int n = 0; n < kStepKeys / 8; ++n) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int key = first_key + 8 * n + lane % 4 * 2 + c;
            if (key < begin || key >= end) s[i][n][2 * r + c] = -INFINITY;
          }
        }
      }
    }
  }

  // Turns scores into weights relative to the rows' new m. A row may not have seen any key yet: its
  // m stays -inf, its weights are 0.
  __device__ void AbsorbScores(float (&s)[2][kStepKeys / 8][4], float scale) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float max = -INFINITY;
#pragma unroll
        for (int n = 0; n < kStepKeys / 8; ++n)
          max = fmaxf(max, fmaxf(s[i][n][2 * r], s[i][n][2 * r + 1]));
        max = fmaxf(max, __shfl_xor_sync(kFullWarp, max, 1));
        max = fmaxf(max, __shfl_xor_sync(kFullWarp, max, 2));
        max = fmaxf(m[i][r], max * scale);
        const float finite_max = max == -INFINITY ? 0 : max;
        const float rescale = Exp2(m[i][r] - finite_max);
        m[i][r] = max;
        l[i][r] *= rescale;
#pragma unroll
        for (int j = 0; j < kHeadDim / 8; ++j) {
          o[i][j][2 * r] *= rescale;
          o[i][j][2 * r + 1] *= rescale;
        }
#pragma unroll
        for (int n = 0; n < kStepKeys / 8; ++n) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float& w = s[i][n][2 * r + c];
            w = Exp2(w * scale - finite_max);
            l[i][r] += w;
          }
        }
      }
    }
  }

  // o += weights V for the kStepKeys values at `v` in shared memory.
  __device__ void AddWeighted(const float (&w)[2][kStepKeys / 8][4], int v) {
    const uint32_t values = shared_address + v + ChunkOffset<kHeadDim>(lane % 16, lane / 16);
#pragma unroll
    for (int step = 0; step < kStepKeys / 16; ++step) {  // 16 keys
      uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        a[i][0] = PackPair<T>(w[i][2 * step][0], w[i][2 * step][1]);
        a[i][1] = PackPair<T>(w[i][2 * step][2], w[i][2 * step][3]);
        a[i][2] = PackPair<T>(w[i][2 * step + 1][0], w[i][2 * step + 1][1]);
        a[i][3] = PackPair<T>(w[i][2 * step + 1][2], w[i][2 * step + 1][3]);
      }
#pragma unroll
      for (int j = 0; j < kHeadDim / 16; ++j) {
        uint32_t b[4];
        LoadMatricesTransposed(b, (values ^ j * 32) + step * 16 * kRowBytes);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          Mma<T>(o[i][2 * j], a[i], b[0], b[1]);
          Mma<T>(o[i][2 * j + 1], a[i], b[2], b[3]);
        }
      }
    }
  }

  // Attends to kStepKeys keys, the first of them at position `key`; K and V lie at `k` and `v`.
  __device__ void TakeInKeys(int key, int k, int v, float scale) {
    const int first = warp_row, last = min(first + kWarpRows, rows.num_rows) - 1;
    if (last < first) return;
    float s[2][kStepKeys / 8][4] = {};
    if constexpr (Rows::kSeeAll) {
      Scores(s, k);
    } else {  // the warp's first and last row bound what its rows see
      if (key >= rows.KeyEnd(last) || key + kStepKeys <= rows.KeyBegin(first)) return;
      Scores(s, k);
      if (key + kStepKeys > rows.KeyEnd(first) || key < rows.KeyBegin(last)) Mask(s, key);
    }
    AbsorbScores(s, scale);
    AddWeighted(s, v);
  }

  // Attends to blocks [begin, end). All threads call it; shared memory is free for it.
  __device__ void TakeIn(int begin, int end, float scale) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      m[i][0] = m[i][1] = -INFINITY;
      l[i][0] = l[i][1] = 0;
    }
    LoadQueries();
    if (begin >= end) return;
    constexpr int kTile = kQueryBytes, kNext = kQueryBytes + 2 * kTileBytes;
    const auto block_of = [&](int j) { return j < end ? table[j] : 0; };
    StartCopy(begin, block_of(begin), kWiden ? kNext : kTile);
    int32_t next_block = block_of(begin + 1);
    int now = kTile, next = kNext;
    for (int j = begin; j < end; ++j) {
      if constexpr (kWiden) {
        WaitForCopies<0>();
        __syncthreads();  // all have the copy, and are done with the block before
        Widen(kNext, kTile);
        __syncthreads();
        if (j + 1 < end) StartCopy(j + 1, next_block, kNext);
      } else {
        if (j + 1 < end) {
          StartCopy(j + 1, next_block, next);
          WaitForCopies<1>();
        } else {
          WaitForCopies<0>();
        }
        __syncthreads();
      }
      next_block = block_of(j + 2);
#pragma unroll 1
      for (int i = 0; i < kBlockKeys; i += kStepKeys) {
        const int at = now + i * kRowBytes;
        TakeInKeys(j * kBlockKeys + i, at, at + kTileBytes, scale);
      }
      if constexpr (!kWiden) {
        __syncthreads();  // the next copy overwrites this block
        const int swap = now;
        now = next;
        next = swap;
      }
    }
  }

  // Calls write(row, m, l, for_each_pair) for each row of which this lane holds columns;
  // for_each_pair(store) calls store(column, o[column], o[column + 1]) for those.
  template <typename Write>
  __device__ void ForEachRow(Write write) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float sum = l[i][r];
        sum += __shfl_xor_sync(kFullWarp, sum, 1);
        sum += __shfl_xor_sync(kFullWarp, sum, 2);
        const int row = warp_row + 16 * i + 8 * r + lane / 4;
        if (row >= rows.num_rows) continue;
        write(row, m[i][r], sum, [&](auto store) {
#pragma unroll
          for (int j = 0; j < kHeadDim / 8; ++j) {
            store(8 * j + lane % 4 * 2, o[i][j][2 * r], o[i][j][2 * r + 1]);
          }
        });
      }
    }
  }
};

}  // namespace bough::cuda
