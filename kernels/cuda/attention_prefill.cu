// Prefill attention: a thread block takes 128 query rows of one KV head, (query, head) pairs with
// the query outermost, so that heads which share keys read them once. Its four warps hold 32 rows
// each; blocks of 64 keys pass through shared memory, the next one on its way while this one is at
// work. An e4m3 block is widened to f16 in shared memory first. Scores and sums are f32, weights are
// rounded to the multiplied type; a row's bits depend on its own sequence alone, not on the batch.
// The longest rows' thread blocks start first, so that none is left over at the end.
#include "kernels/cuda/attention_kernels.cuh"

namespace bough::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kWarpRows = 32;
constexpr int kRows = kWarps * kWarpRows;
constexpr int kChunkBytes = 16;  // shared memory's unit: 8 elements

// Rows of kHeadDim 16-bit elements in shared memory. Chunk c of row r lies at chunk c ^ (r % 8), so
// eight rows at one column meet all banks.
template <int kHeadDim>
__device__ uint32_t ChunkOffset(int row, int chunk) {
  return row * kHeadDim * 2 + ((chunk ^ (row % 8)) * kChunkBytes);
}

// Four 8x8 matrices whose rows' addresses the lanes name: lane 8 i + r row r of matrix i.
__device__ void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ void LoadMatricesTransposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Starts a copy of 16 bytes, or of zeros.
__device__ void CopyAsync(uint32_t to, const char* from, bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(wanted ? 16 : 0)
               : "memory");
}
__device__ void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

template <typename KV, int kHeadDim>
struct PrefillKernel {
  using T = MmaType<KV>;
  static constexpr bool kWiden = sizeof(KV) == 1;
  static constexpr int kSteps = kHeadDim / 16;
  static constexpr int kTileBytes = kBlockKeys * kHeadDim * 2;          // K or V, 16-bit
  static constexpr int kRawBytes = kBlockKeys * kHeadDim * sizeof(KV);  // as in the cache
  // [queries] [K, V of block j] [K, V of block j + 1, as in the cache]; without widening the last
  // two change places.
  static constexpr int kQueryBytes = kRows * kHeadDim * 2;
  static constexpr int kSharedBytes = kQueryBytes + 2 * kTileBytes + 2 * kRawBytes;

  const AttentionParams& p;
  const int kv_head, first_row;  // rows [first_row, first_row + kRows) of the sequence's
  const int first_token, num_q, seqlen;
  const int32_t* table;
  char* const shared;
  const uint32_t shared_address;

  int warp_row = threadIdx.x / kWarpSize * kWarpRows;
  int lane = threadIdx.x % kWarpSize;
  float m[2][2], l[2][2];  // of rows 16 i + 8 r + lane / 4 of the warp
  float o[2][kHeadDim / 8][4] = {};

  // Keys [KeyBegin, KeyEnd) are what the query of row `row` sees.
  __device__ int KeyEnd(int row) const { return seqlen - num_q + row / p.HeadsPerKv() + 1; }
  __device__ int KeyBegin(int row) const {
    return p.sliding_window > 0 ? max(0, KeyEnd(row) - p.sliding_window) : 0;
  }
  __device__ int NumRows() const { return num_q * p.HeadsPerKv(); }

  __device__ void LoadQueries() {
    constexpr int kChunks = kHeadDim / 8;
    const int heads = p.HeadsPerKv();
    for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
      const int row = first_row + i / kChunks, chunk = i % kChunks;
      uint4 q = {0, 0, 0, 0};
      if (row < NumRows()) {
        const BF16* from = static_cast<const BF16*>(p.q) +
                           int64_t{first_token + row / heads} * p.q_stride +
                           (kv_head * heads + row % heads) * kHeadDim + chunk * 8;
        q = *reinterpret_cast<const uint4*>(from);
      }
      *reinterpret_cast<uint4*>(shared + ChunkOffset<kHeadDim>(i / kChunks, chunk)) =
          ConvertPairs<T>(q);
    }
  }

  // Starts copying K and V of a block of the cache; keys past the sequence's end become zeros.
  __device__ void StartCopy(int block_idx, int32_t block, int to) const {
    constexpr int kRowChunks = kHeadDim * sizeof(KV) / kChunkBytes;
    const int64_t offset = (int64_t{block} * p.num_kv_heads + kv_head) * kRawBytes;
    const char* k = static_cast<const char*>(p.k_cache) + offset;
    const char* v = static_cast<const char*>(p.v_cache) + offset;
#pragma unroll
    for (int i = threadIdx.x; i < kBlockKeys * kRowChunks; i += kThreads) {
      const int row = i / kRowChunks;
      const bool wanted = block_idx * kBlockKeys + row < seqlen;
      const uint32_t at = kWiden ? i * kChunkBytes : ChunkOffset<kHeadDim>(row, i % kRowChunks);
      CopyAsync(shared_address + to + at, k + i * kChunkBytes, wanted);
      CopyAsync(shared_address + to + kRawBytes + at, v + i * kChunkBytes, wanted);
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

  // s = Q K^T for the warp's rows and the 64 keys at `k` in shared memory.
  __device__ void Scores(float (&s)[2][8][4], int k) const {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        LoadMatrices(a[i], shared_address + ChunkOffset<kHeadDim>(warp_row + 16 * i + lane % 16,
                                                                  2 * step + lane / 16));
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {  // 16 keys
        uint32_t b[4];
        LoadMatrices(b, shared_address + k +
                            ChunkOffset<kHeadDim>(16 * n + lane / 16 * 8 + lane % 8,
                                                  2 * step + lane / 8 % 2));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          Mma<T>(s[i][2 * n], a[i], b[0], b[1]);
          Mma<T>(s[i][2 * n + 1], a[i], b[2], b[3]);
        }
      }
    }
  }

  // Keys that a row does not see get -inf.
  __device__ void Mask(float (&s)[2][8][4], int first_key) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = first_row + warp_row + 16 * i + 8 * r + lane / 4;
        const int begin = KeyBegin(row), end = KeyEnd(row);
#pragma unroll
        for (int n = 0; n < 8; ++n) {
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
  __device__ void AbsorbScores(float (&s)[2][8][4], float scale) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float max = -INFINITY;
#pragma unroll
        for (int n = 0; n < 8; ++n) max = fmaxf(max, fmaxf(s[i][n][2 * r], s[i][n][2 * r + 1]));
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
        for (int n = 0; n < 8; ++n) {
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

  // o += weights V for the 64 values at `v` in shared memory.
  __device__ void AddWeighted(const float (&w)[2][8][4], int v) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {  // 16 keys
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
        LoadMatricesTransposed(
            b,
            shared_address + v + ChunkOffset<kHeadDim>(16 * step + lane % 16, 2 * j + lane / 16));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          Mma<T>(o[i][2 * j], a[i], b[0], b[1]);
          Mma<T>(o[i][2 * j + 1], a[i], b[2], b[3]);
        }
      }
    }
  }

  __device__ void TakeIn(int block_idx, int k, float scale) {
    // The warp's first and last row bound what its rows see.
    const int first = first_row + warp_row;
    const int last = min(first + kWarpRows, NumRows()) - 1;
    const int key = block_idx * kBlockKeys;
    if (last < first || key >= KeyEnd(last) || key + kBlockKeys <= KeyBegin(first)) return;
    float s[2][8][4] = {};
    Scores(s, k);
    if (key + kBlockKeys > KeyEnd(first) || key < KeyBegin(last)) Mask(s, key);
    AbsorbScores(s, scale);
    AddWeighted(s, k + kTileBytes);
  }

  __device__ void Store(float v_scale) {
    const int heads = p.HeadsPerKv();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float sum = l[i][r];
        sum += __shfl_xor_sync(kFullWarp, sum, 1);
        sum += __shfl_xor_sync(kFullWarp, sum, 2);
        const int row = first_row + warp_row + 16 * i + 8 * r + lane / 4;
        if (row >= NumRows()) continue;
        const float scale = sum > 0 ? v_scale / sum : 0;  // 0: a row without keys
        const int64_t out_row =
            int64_t{first_token + row / heads} * p.num_heads + kv_head * heads + row % heads;
        BF16* out = static_cast<BF16*>(p.o) + out_row * kHeadDim + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < kHeadDim / 8; ++j) {
          *reinterpret_cast<uint32_t*>(out + 8 * j) =
              PackPair<BF16>(o[i][j][2 * r] * scale, o[i][j][2 * r + 1] * scale);
        }
      }
    }
  }

  __device__ void Run() {
    const float k_scale = p.k_scale != nullptr ? p.k_scale[kv_head] : 1;
    const float v_scale = p.v_scale != nullptr ? p.v_scale[kv_head] : 1;
    const float scale = p.sm_scale * kLog2E * k_scale;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      m[i][0] = m[i][1] = -INFINITY;
      l[i][0] = l[i][1] = 0;
    }
    const int last_row = min(first_row + kRows, NumRows()) - 1;
    const int begin = KeyBegin(first_row) / kBlockKeys, end = CeilDiv(KeyEnd(last_row), kBlockKeys);
    constexpr int kTile = kQueryBytes, kNext = kQueryBytes + 2 * kTileBytes;
    const auto block_of = [&](int j) { return j < end ? table[j] : 0; };
    LoadQueries();
    if (begin < end) {
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
        TakeIn(j, now, scale);
        if constexpr (!kWiden) {
          __syncthreads();  // the next copy overwrites this block
          const int swap = now;
          now = next;
          next = swap;
        }
      }
    }
    Store(v_scale);
  }
};

template <typename KV, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 2) PrefillAttentionKernel(AttentionParams p) {
  extern __shared__ uint4 shared_memory[];
  char* const shared = reinterpret_cast<char*>(shared_memory);
  WaitForPrevious();
  AllowNext();
  const int seq = blockIdx.z, kv_head = blockIdx.x;
  const int first_token = p.cu_seqlens_q[seq], num_q = p.cu_seqlens_q[seq + 1] - first_token;
  const int num_tiles = CeilDiv(num_q * p.HeadsPerKv(), kRows);
  const int tile = num_tiles - 1 - static_cast<int>(blockIdx.y);  // the last rows see most keys
  if (num_q <= 1 || tile < 0) return;
  PrefillKernel<KV, kHeadDim> kernel{p,
                                     kv_head,
                                     tile * kRows,
                                     first_token,
                                     num_q,
                                     p.seqlens_kv[seq],
                                     p.block_tables + int64_t{seq} * p.max_blocks,
                                     shared,
                                     static_cast<uint32_t>(__cvta_generic_to_shared(shared))};
  kernel.Run();
}

}  // namespace

void LaunchPrefillAttention(const AttentionParams& p, Stream stream) {
  DispatchMmaAttention(p, [&]<typename KV, int kHeadDim>() {
    constexpr int kBytes = PrefillKernel<KV, kHeadDim>::kSharedBytes;
    const auto kernel = PrefillAttentionKernel<KV, kHeadDim>;
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    const dim3 grid(p.num_kv_heads, CeilDiv(p.max_seqlen_q * p.HeadsPerKv(), kRows), p.num_seqs);
    Launch(kernel, grid, kThreads, kBytes, stream, p);
  });
}

}  // namespace bough::cuda
