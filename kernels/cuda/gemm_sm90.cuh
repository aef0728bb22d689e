// Tensor-core GEMM for Hopper, dense and grouped: one persistent kernel, in bytes, so that e4m3 and
// bf16 differ in one instruction.
//
// The weights' rows are the 64-row side of wgmma and the tokens its free side, so that 1 token costs
// 8 columns and no more. Both operands lie in shared memory as TMA put them: rows of 128 bytes of k
// (a k-block), swizzled. One producer thread runs ahead over the thread block's list of work by as
// many stages as fit, 180 KB or more in flight per SM; one or two warpgroups multiply.
//
// Few tokens: HBM bound, so the weights must stream through every SM all the time. Whole tiles in
// turn leave SMs idle in the last round; the tiles that do not fill a round are split over k (see
// Schedule). A split tile belongs to the thread block with its first k-block; the others leave f32
// sums in the workspace, and the owner adds them in the order of k.
// Many tokens: tensor-core bound; a cluster of two thread blocks shares each copy of tokens, since
// 128x256 tiles alone would need more than L2 delivers.
//
// FP8 products are summed by the tensor core with about 14 bits; tiles with registers to spare add
// them to f32 every 4 k-blocks. Error of a sum over k = 14336, of the outputs' spread: 0.0004 with
// that, 0.003 without.
//
// Measured on H200s (bench-kernels-gemm) for Mixtral-8x7B's experts in FP8: 3.7-4.0 TB/s of weights
// at 1 token, 4.0-4.25 at 8..128 (81-87 and 87-92 % of what it reads at best), 1,150-1,270 TFLOPS at
// 4096 tokens and more; in bf16 500-640. Two thread blocks' cluster with 128x256 tiles was between
// 8 % faster and 15 % slower than 256x128 tiles from one GPU to the next.
#pragma once

#include <cudaTypedefs.h>

#include "kernels/cuda/gemm_config.h"
#include "kernels/cuda/gemm_schedule.cuh"
#include "kernels/cuda/sm90.cuh"

namespace bough::cuda {

inline constexpr int kBlockBytes = 128;  // of k, per stage: what a 128-byte swizzle spans
inline constexpr int kMaxSharedBytes = 227 * 1024;  // per thread block on sm_90
inline constexpr int64_t kFlagsBytes = 4096;        // of the workspace, at its start
inline constexpr int kBlocksPerPromotion = 4;

template <typename T, int N, int M, int kClusterSize>
struct Tile {
  using Element = T;
  static constexpr int kTileN = N, kTileM = M, kCluster = kClusterSize;
  static constexpr int kWarpgroups = kTileN >= 128 ? 2 : 1;
  // Two warpgroups need the registers of the producer's idle warps, and only whole warpgroups lend.
  static constexpr bool kLendsRegisters = kWarpgroups == 2;
  static constexpr int kNumThreads =
      kWarpgroups * kWarpgroupSize + (kLendsRegisters ? kWarpgroupSize : kWarpSize);
  static constexpr int kProducts = kTileN / 64 / kWarpgroups;  // of 64 outputs, per warpgroup
  static constexpr int kSums = kTileM / 2;                     // per product and thread
  // Tokens come in boxes, of which a tile with fewer tokens needs fewer.
  static constexpr int kBoxRows = kTileM <= 32 ? kTileM : kTileM <= 128 ? 32 : 64;
  static constexpr int kBoxBytes = kBoxRows * kBlockBytes;
  static constexpr int kWeightBytes = kTileN * kBlockBytes, kTokenBytes = kTileM * kBlockBytes;
  // Wide tiles multiply by as many tokens as there are, in steps.
  static constexpr int kWidthStep = kTileM >= 128 ? 64 : kTileM;
  static constexpr bool kPromotes = sizeof(T) == 1 && kProducts * kSums <= 64;
  static constexpr int kPartialPacks = kProducts * kSums / 4;
  // y goes through shared memory in chunks of tokens, [chunk][64 outputs] and 16 bytes of padding.
  static constexpr int kBF16Chunk = kTileM < 64 ? kTileM : 64;
  static constexpr int kF32Chunk = kTileM < 32 ? kTileM : 32;
  static constexpr int kStagingBytes = kBF16Chunk * (64 * 2 + 16) > kF32Chunk*(64 * 4 + 16)
                                           ? kBF16Chunk*(64 * 2 + 16)
                                           : kF32Chunk*(64 * 4 + 16);
  static constexpr int kFixedBytes =
      kWarpgroups * (kStagingBytes + kTileM * 4) + sizeof(ScheduleTable) + 1024;
  static constexpr int kStagesThatFit =
      (kMaxSharedBytes - kFixedBytes) / (kWeightBytes + kTokenBytes + 16);
  static constexpr int kStages = kStagesThatFit < 24 ? kStagesThatFit : 24;
  static_assert(kStages >= 4, "fewer stages do not hide a copy");
};

template <typename Tile>
struct Shared {
  alignas(1024) uint8_t weights[Tile::kStages][Tile::kWeightBytes];
  alignas(1024) uint8_t tokens[Tile::kStages][Tile::kTokenBytes];
  alignas(16) uint8_t staging[Tile::kWarpgroups][Tile::kStagingBytes];
  alignas(16) float x_scale[Tile::kWarpgroups][Tile::kTileM];
  uint64_t full[Tile::kStages], empty[Tile::kStages];
  ScheduleTable table;
};

// A stage of the ring and the parity of its barriers' phase.
template <typename Tile>
struct RingPosition {
  int stage = 0;
  uint32_t phase = 0;
  __device__ void Advance() {
    if (++stage < Tile::kStages) return;
    stage = 0;
    phase ^= 1;
  }
};

// Copies what the schedule needs into the ring, as stages become free. One thread runs it. If the
// offsets are known, the first weights are asked for before the kernel before has ended.
template <typename Tile>
__device__ void Produce(const TiledGemmArgs& args, const CUtensorMap& w_map,
                        const CUtensorMap& x_map, Shared<Tile>& shared) {
  // Few tokens: weights are read once, tokens by every thread block.
  constexpr bool kFewTokens = Tile::kTileM < 256;
  const uint64_t weight_policy = kFewTokens ? EvictFirst() : EvictNormal();
  const uint64_t token_policy = kFewTokens ? EvictLast() : EvictNormal();
  const auto num_boxes = [](const Work& work) { return CeilDiv(work.num_rows, Tile::kBoxRows); };
  const auto copy_weights = [&](int stage, const Work& work, int k) {
    uint64_t* full = &shared.full[stage];
    ArriveExpectBytes(full, Tile::kWeightBytes + num_boxes(work) * Tile::kBoxBytes);
    const int row = work.expert * args.n + work.n_begin;
    CopyBox(shared.weights[stage], &w_map, k * kBlockBytes, row, full, weight_policy);
  };
  const auto copy_tokens = [&](int stage, const Work& work, int k) {
    for (int box = 0; box < num_boxes(work); ++box) {
      uint8_t* to = shared.tokens[stage] + box * Tile::kBoxBytes;
      const int row = work.row_begin + box * Tile::kBoxRows;
      if constexpr (Tile::kCluster == 1) {
        CopyBox(to, &x_map, k * kBlockBytes, row, &shared.full[stage], token_policy);
      } else if (box % Tile::kCluster == static_cast<int>(blockIdx.x) % Tile::kCluster) {
        CopyBoxToCluster(to, &x_map, k * kBlockBytes, row, &shared.full[stage], token_policy,
                         (1 << Tile::kCluster) - 1);
      }
    }
  };

  int num_ahead = 0;
  if (args.offsets_known) {
    Schedule<Tile> schedule(args, shared.table);
    for (Work work; num_ahead < Tile::kStages && schedule.Next(work);) {
      for (int k = work.k_begin; k < work.k_end && num_ahead < Tile::kStages; ++k) {
        copy_weights(num_ahead++, work, k);
      }
    }
  }
  WaitForPrevious();
  Schedule<Tile> schedule(args, shared.table);
  RingPosition<Tile> at;
  for (Work work; schedule.Next(work);) {
    for (int k = work.k_begin; k < work.k_end; ++k) {
      if (num_ahead > 0) {
        --num_ahead;
      } else {
        Wait(&shared.empty[at.stage], at.phase ^ 1);
        copy_weights(at.stage, work, k);
      }
      copy_tokens(at.stage, work, k);
      at.Advance();
    }
  }
}

// One warp of a warpgroup reads the stage no more; in the cluster's others it may be overwritten too.
template <typename Tile>
__device__ void Release(Shared<Tile>& shared, int stage) {
  const int lane = threadIdx.x % kWarpSize;
  if constexpr (Tile::kCluster == 1) {
    if (lane == 0) Arrive(&shared.empty[stage]);
  } else {
    if (lane < Tile::kCluster) ArriveRemote(&shared.empty[stage], lane);
  }
}

// sums = the products over the next num_blocks > 0 stages, for the first kWidth tokens.
template <typename Tile, int kWidth>
__device__ __forceinline__ void Multiply(Shared<Tile>& shared, RingPosition<Tile>& at,
                                         int num_blocks,
                                         float (&sums)[Tile::kProducts][Tile::kSums]) {
  using T = typename Tile::Element;
  const int first_row = threadIdx.x / kWarpgroupSize * Tile::kProducts * 64;
  // All of them, also those past kWidth: ptxas runs the products one by one if any is undefined.
#pragma unroll
  for (int i = 0; i < Tile::kProducts * Tile::kSums; ++i) {
    sums[i / Tile::kSums][i % Tile::kSums] = 0;
  }
  int previous = 0;
  for (int i = 0; i < num_blocks; ++i) {
    const uint64_t weights = MatrixDescriptor(shared.weights[at.stage] + first_row * kBlockBytes);
    const uint64_t tokens = MatrixDescriptor(shared.tokens[at.stage]);
    Wait(&shared.full[at.stage], at.phase);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < kBlockBytes / 32; ++k) {
#pragma unroll
      for (int j = 0; j < Tile::kProducts; ++j) {
        Wgmma<T, kWidth>(sums[j], weights + j * (64 * kBlockBytes / 16) + k * 2, tokens + k * 2);
      }
    }
    WgmmaCommit();
    WgmmaWait<1>();
    if (i > 0) Release(shared, previous);
    previous = at.stage;
    at.Advance();
  }
  WgmmaWait<0>();
  Release(shared, previous);
#pragma unroll
  for (int j = 0; j < Tile::kProducts; ++j) PinRegisters(sums[j]);
}

// As Multiply, with f32 sums of short runs where registers allow.
template <typename Tile, int kWidth>
__device__ __forceinline__ void Accumulate(Shared<Tile>& shared, RingPosition<Tile>& at,
                                           int num_blocks,
                                           float (&sums)[Tile::kProducts][Tile::kSums]) {
  if constexpr (!Tile::kPromotes) {
    Multiply<Tile, kWidth>(shared, at, num_blocks, sums);
  } else {
    constexpr int kSums = Tile::kSums;
#pragma unroll
    for (int i = 0; i < Tile::kProducts * kSums; ++i) sums[i / kSums][i % kSums] = 0;
    for (int i = 0; i < num_blocks; i += kBlocksPerPromotion) {
      float run[Tile::kProducts][kSums];
      Multiply<Tile, kWidth>(shared, at, min(kBlocksPerPromotion, num_blocks - i), run);
#pragma unroll
      for (int j = 0; j < Tile::kProducts * kSums; ++j) {
        sums[j / kSums][j % kSums] += run[j / kSums][j % kSums];
      }
    }
  }
}

template <typename Tile>
__device__ float4* Partials(const TiledGemmArgs& args, int cta) {
  const int slot = cta * Tile::kWarpgroups + threadIdx.x / kWarpgroupSize;
  return args.partials + int64_t{slot} * Tile::kPartialPacks * kWarpgroupSize +
         threadIdx.x % kWarpgroupSize;
}

template <typename Tile>
__device__ uint32_t* Flag(const TiledGemmArgs& args, int cta) {
  return args.flags + cta * Tile::kWarpgroups + threadIdx.x / kWarpgroupSize;
}

// Leaves a warpgroup's sums for the thread block that began the tile.
template <typename Tile>
__device__ void LeavePartials(const TiledGemmArgs& args,
                              const float (&sums)[Tile::kProducts][Tile::kSums]) {
  float4* to = Partials<Tile>(args, blockIdx.x);
#pragma unroll
  for (int i = 0; i < Tile::kPartialPacks; ++i) {
    const float* s = &sums[4 * i / Tile::kSums][4 * i % Tile::kSums];
    __stcg(to + i * kWarpgroupSize, make_float4(s[0], s[1], s[2], s[3]));
  }
  SyncThreads(1 + threadIdx.x / kWarpgroupSize, kWarpgroupSize);
  if (threadIdx.x % kWarpgroupSize == 0) StoreRelease(Flag<Tile>(args, blockIdx.x), 1);
}

// Adds the sums of the units that did the rest of the tile, in the order of k. They began with it,
// and all thread blocks run at once, so they are done or about to be. Leaves their flags zero.
template <typename Tile>
__device__ void AddPartials(const TiledGemmArgs& args, const Schedule<Tile>& schedule,
                            float (&sums)[Tile::kProducts][Tile::kSums]) {
  const int end_unit = schedule.EndUnit();
  for (int unit = blockIdx.x / Tile::kCluster + 1; unit < end_unit; ++unit) {
    const int cta = unit * Tile::kCluster + blockIdx.x % Tile::kCluster;
    if (threadIdx.x % kWarpgroupSize == 0) {
      while (LoadAcquire(Flag<Tile>(args, cta)) == 0) __nanosleep(20);
      *Flag<Tile>(args, cta) = 0;
    }
    SyncThreads(1 + threadIdx.x / kWarpgroupSize, kWarpgroupSize);
    const float4* from = Partials<Tile>(args, cta);
#pragma unroll
    for (int i = 0; i < Tile::kPartialPacks; ++i) {
      const float4 v = __ldcg(from + i * kWarpgroupSize);
      float* s = &sums[4 * i / Tile::kSums][4 * i % Tile::kSums];
      s[0] += v.x;
      s[1] += v.y;
      s[2] += v.z;
      s[3] += v.w;
    }
  }
}

// One thread's share of the tile's scales; 1 where there are none.
template <typename Tile>
struct Scales {
  static constexpr int kTokens = CeilDiv(Tile::kTileM, kWarpgroupSize);
  float x[kTokens];             // of tokens thread + kWarpgroupSize * i
  float w[Tile::kProducts][2];  // of outputs lane / 4 + 8 * h in the warp's rows

  __device__ void Load(const TiledGemmArgs& args, const Work& work) {
    const int thread = threadIdx.x % kWarpgroupSize;
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const int token = thread + kWarpgroupSize * i;
      x[i] = args.x_scale != nullptr && token < work.num_rows ? args.x_scale[work.row_begin + token]
                                                              : 1.0f;
    }
#pragma unroll
    for (int i = 0; i < 2 * Tile::kProducts; ++i) {
      const int n = work.n_begin + (threadIdx.x / kWarpgroupSize * Tile::kProducts + i / 2) * 64 +
                    thread / kWarpSize * 16 + thread % kWarpSize / 4 + i % 2 * 8;
      w[i / 2][i % 2] = args.w_scale != nullptr && n < args.n
                            ? args.w_scale[int64_t{work.expert} * args.n + n]
                            : 1.0f;
    }
  }
};

// Puts a chunk of one product's scaled sums into the warpgroup's staging memory, [tokens][outputs].
template <typename Tile, typename Out, int kChunk>
__device__ void StageChunk(const float (&sums)[Tile::kSums], int chunk, const float* x_scale,
                           const float (&w_scale)[2], uint8_t* staging) {
  constexpr int kRowBytes = 64 * sizeof(Out) + 16;
  const int warp = threadIdx.x / kWarpSize % 4, lane = threadIdx.x % kWarpSize;
  constexpr int kColumns = kChunk / 8;  // of 8x8 matrices
  // The four sums of column group j: outputs lane / 4 (+ 8), tokens 8 j + 2 (lane % 4) (+ 1).
  const auto scaled = [&](int j, int h, int c) {
    const float x = x_scale[8 * j + 2 * (lane % 4) + c];
    return sums[4 * j + 2 * h + c] * (x * w_scale[h]);
  };
  if constexpr (sizeof(Out) == 4) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = 8 * j + 2 * (lane % 4) + i % 2;
        const int output = 16 * warp + lane / 4 + i / 2 * 8;
        *reinterpret_cast<float*>(staging + token * kRowBytes + output * 4) =
            scaled(chunk * kColumns + j, i / 2, i % 2);
      }
    }
  } else {
    const auto packed = [&](int j, int h) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(scaled(j, h, 0), scaled(j, h, 1));
      return *reinterpret_cast<const uint32_t*>(&pair);
    };
    // Lane's address: matrix lane / 8, of which every second holds outputs + 8.
    uint8_t* at =
        staging + (lane / 16 * 8 + lane % 8) * kRowBytes + (16 * warp + lane / 8 % 2 * 8) * 2;
    if constexpr (kColumns == 1) {
      at = staging + lane % 8 * kRowBytes + (16 * warp + lane / 8 % 2 * 8) * 2;
      StoreTransposed(at, packed(chunk, 0), packed(chunk, 1));
    } else {
#pragma unroll
      for (int j = 0; j < kColumns; j += 2) {
        const int column = chunk * kColumns + j;
        StoreTransposed(at + j * 8 * kRowBytes, packed(column, 0), packed(column, 1),
                        packed(column + 1, 0), packed(column + 1, 1));
      }
    }
  }
}

// y of one warpgroup's outputs, 16 bytes at a time, through its staging memory.
template <typename Tile, typename Out, int kChunk>
__device__ void StoreTile(const TiledGemmArgs& args, const Work& work, const Scales<Tile>& scales,
                          const float (&sums)[Tile::kProducts][Tile::kSums], Shared<Tile>& shared) {
  constexpr int kRowBytes = 64 * sizeof(Out) + 16, kPerPack = 16 / sizeof(Out);
  constexpr int kPacksPerRow = 64 / kPerPack, kRowsAtOnce = kWarpgroupSize / kPacksPerRow;
  const int warpgroup = threadIdx.x / kWarpgroupSize, thread = threadIdx.x % kWarpgroupSize;
  const auto sync = [&] { SyncThreads(1 + warpgroup, kWarpgroupSize); };
  uint8_t* staging = shared.staging[warpgroup];
  float* x_scale = shared.x_scale[warpgroup];
#pragma unroll
  for (int i = 0; i < Scales<Tile>::kTokens; ++i) {
    const int token = thread + kWarpgroupSize * i;
    if (token < Tile::kTileM) x_scale[token] = scales.x[i];
  }
  sync();
  const int first_row = thread / kPacksPerRow, pack = thread % kPacksPerRow;
#pragma unroll
  for (int product = 0; product < Tile::kProducts; ++product) {
    const int n = work.n_begin + (warpgroup * Tile::kProducts + product) * 64 + pack * kPerPack;
    Out* y = static_cast<Out*>(args.y) + int64_t{work.row_begin + first_row} * args.n + n;
#pragma unroll
    for (int chunk = 0; chunk < Tile::kTileM / kChunk; ++chunk) {
      if (chunk * kChunk >= work.num_rows) break;
      StageChunk<Tile, Out, kChunk>(sums[product], chunk, x_scale, scales.w[product], staging);
      sync();
#pragma unroll
      for (int i = 0; i < kChunk; i += kRowsAtOnce) {
        if (chunk * kChunk + i + first_row < work.num_rows && n < args.n) {
          *reinterpret_cast<uint4*>(y) =
              *reinterpret_cast<const uint4*>(staging + (i + first_row) * kRowBytes + pack * 16);
        }
        y += int64_t{kRowsAtOnce} * args.n;
      }
      sync();
    }
  }
}

// The products of a work's k-blocks, no wider than its tokens need.
template <typename Tile>
__device__ __forceinline__ void AccumulateWork(Shared<Tile>& shared, RingPosition<Tile>& at,
                                               const Work& work,
                                               float (&sums)[Tile::kProducts][Tile::kSums]) {
  const int num_blocks = work.k_end - work.k_begin;
  constexpr int kStep = Tile::kWidthStep, kTileM = Tile::kTileM;
  if constexpr (kStep < kTileM) {
    if (work.num_rows <= kStep) return Accumulate<Tile, kStep>(shared, at, num_blocks, sums);
  }
  if constexpr (2 * kStep < kTileM) {
    if (work.num_rows <= 2 * kStep) {
      return Accumulate<Tile, 2 * kStep>(shared, at, num_blocks, sums);
    }
    if (work.num_rows <= 3 * kStep) {
      return Accumulate<Tile, 3 * kStep>(shared, at, num_blocks, sums);
    }
  }
  Accumulate<Tile, kTileM>(shared, at, num_blocks, sums);
}

template <typename Tile>
__device__ void Consume(const TiledGemmArgs& args, Shared<Tile>& shared) {
  WaitForPrevious();
  Schedule<Tile> schedule(args, shared.table);
  RingPosition<Tile> at;
  for (Work work; schedule.Next(work);) {
    Scales<Tile> scales;
    scales.Load(args, work);  // lands while the products run
    float sums[Tile::kProducts][Tile::kSums];
    AccumulateWork(shared, at, work, sums);
    if (work.k_begin > 0) {
      LeavePartials<Tile>(args, sums);
      continue;
    }
    if (work.k_end < args.num_k_blocks) AddPartials(args, schedule, sums);
    if (args.f32_out) {
      StoreTile<Tile, float, Tile::kF32Chunk>(args, work, scales, sums, shared);
    } else {
      StoreTile<Tile, BF16, Tile::kBF16Chunk>(args, work, scales, sums, shared);
    }
  }
}

// w_map: [num_experts * n, row bytes] u8, x_map: [num_rows, row bytes] u8. A box that reaches past an
// expert's rows holds the next expert's, or zeros past the tensor: each row ends up in one row or
// column of the tile, and those are not stored.
template <typename Tile>
__global__ void __launch_bounds__(Tile::kNumThreads, 1) __cluster_dims__(Tile::kCluster, 1, 1)
    TiledGemmKernel(const __grid_constant__ CUtensorMap w_map,
                    const __grid_constant__ CUtensorMap x_map,
                    const __grid_constant__ TiledGemmArgs args) {
  extern __shared__ __align__(1024) uint8_t shared_bytes[];
  Shared<Tile>& shared = *reinterpret_cast<Shared<Tile>*>(shared_bytes);
  constexpr int kNumConsumers = Tile::kWarpgroups * kWarpgroupSize;
  if (threadIdx.x == kNumConsumers) {
    PrefetchTensorMap(&w_map);
    PrefetchTensorMap(&x_map);
    for (int i = 0; i < Tile::kStages; ++i) {
      InitBarrier(&shared.full[i], 1);
      InitBarrier(&shared.empty[i], kNumConsumers / kWarpSize * Tile::kCluster);
    }
    FenceBarrierInit();
  }
  AllowNext();
  if (!args.offsets_known) WaitForPrevious();
  FillTable<Tile>(args, shared.table);
  if constexpr (Tile::kCluster > 1) SyncCluster();  // barriers must exist before others use them
  if (threadIdx.x >= kNumConsumers) {
    if constexpr (Tile::kLendsRegisters) ShrinkRegisters<56>();
    if (threadIdx.x == kNumConsumers) Produce<Tile>(args, w_map, x_map, shared);
    __syncwarp();
  } else {
    if constexpr (Tile::kLendsRegisters) GrowRegisters<224>();
    Consume<Tile>(args, shared);
  }
  if constexpr (Tile::kCluster > 1) SyncCluster();  // others may still signal this one's barriers
}

// A [rows, row_bytes] matrix in boxes of 128 bytes x box_rows.
inline CUtensorMap MakeTensorMap(const void* data, int64_t num_rows, int64_t row_bytes,
                                 int box_rows) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                cudaEnableDefault, &found));
    CHECK(found == cudaDriverEntryPointSuccess) << "the driver has no cuTensorMapEncodeTiled";
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  CUtensorMap map;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(row_bytes),
                              static_cast<cuuint64_t>(num_rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(row_bytes)};
  const cuuint32_t box[] = {kBlockBytes, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(data), sizes, strides, box,
             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(result == CUDA_SUCCESS) << "tensor map of [" << num_rows << ", " << row_bytes
                                << "] bytes: error " << static_cast<int>(result);
  return map;
}

inline int NumSms() {
  static const int num_sms = [] {
    int device = 0, value = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device));
    return value;
  }();
  return num_sms;
}

template <typename Tile>
void LaunchTile(const GroupedGemmParams& p, bool split_k, Stream stream) {
  static const bool allowed = [] {
    CUDA_CHECK(cudaFuncSetAttribute(
        TiledGemmKernel<Tile>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared<Tile>)));
    return true;
  }();
  (void)allowed;
  static_assert(sizeof(Shared<Tile>) <= kMaxSharedBytes, "a thread block's shared memory");
  const int64_t row_bytes = int64_t{p.k} * sizeof(typename Tile::Element);
  const int num_experts = p.expert_offsets == nullptr ? 1 : p.num_experts;
  const int num_k_blocks = static_cast<int>((row_bytes + kBlockBytes - 1) / kBlockBytes);
  const int64_t num_n_tiles = CeilDiv(p.n, Tile::kTileN * Tile::kCluster);
  // Each expert ends in at most one tile that is not full.
  int64_t most_units = num_n_tiles * (p.num_rows / Tile::kTileM + num_experts);
  if (split_k) most_units *= 4;
  const int num_units = static_cast<int>(std::min<int64_t>(NumSms() / Tile::kCluster, most_units));
  const int grid = num_units * Tile::kCluster;
  CHECK_LT(int64_t{num_k_blocks} * grid * grid, int64_t{1} << 31) << "k-blocks are counted in ints";
  CHECK(!split_k || p.workspace != nullptr) << "a product split over k needs a workspace";
  CHECK_LE(kFlagsBytes + int64_t{grid} * Tile::kTileN * Tile::kTileM * 4, kGemmWorkspaceBytes);
  const TiledGemmArgs args = {
      .x_scale = p.x_scale,
      .w_scale = p.w_scale,
      .expert_offsets = p.expert_offsets,
      .y = p.y,
      .flags = static_cast<uint32_t*>(p.workspace),
      .partials = reinterpret_cast<float4*>(static_cast<uint8_t*>(p.workspace) + kFlagsBytes),
      .num_experts = num_experts,
      .num_rows = p.num_rows,
      .n = p.n,
      .num_k_blocks = num_k_blocks,
      .split_k = split_k,
      .f32_out = p.out_dtype == DType::kF32,
      .offsets_known = p.expert_offsets == nullptr || p.offsets_known};
  Launch(TiledGemmKernel<Tile>, dim3(grid), Tile::kNumThreads, sizeof(Shared<Tile>), stream,
         MakeTensorMap(p.w, int64_t{num_experts} * p.n, row_bytes, Tile::kTileN),
         MakeTensorMap(p.x, p.num_rows, row_bytes, Tile::kBoxRows), args);
}

// The tile that the config names.
template <typename T>
void LaunchConfig(const GroupedGemmParams& p, const GemmConfig& c, Stream stream) {
  const auto is = [&](int tile_n, int tile_m, int cluster) {
    return c.tile_n == tile_n && c.tile_m == tile_m && c.cluster == cluster;
  };
  if (is(64, 8, 1)) return LaunchTile<Tile<T, 64, 8, 1>>(p, c.split_k, stream);
  if (is(64, 16, 1)) return LaunchTile<Tile<T, 64, 16, 1>>(p, c.split_k, stream);
  if (is(128, 32, 1)) return LaunchTile<Tile<T, 128, 32, 1>>(p, c.split_k, stream);
  if (is(128, 64, 1)) return LaunchTile<Tile<T, 128, 64, 1>>(p, c.split_k, stream);
  if (is(128, 128, 2)) return LaunchTile<Tile<T, 128, 128, 2>>(p, c.split_k, stream);
  if (is(256, 128, 1)) return LaunchTile<Tile<T, 256, 128, 1>>(p, c.split_k, stream);
  if (is(128, 256, 2)) return LaunchTile<Tile<T, 128, 256, 2>>(p, c.split_k, stream);
  CHECK(false) << "no tile of " << c.tile_n << " x " << c.tile_m << ", cluster " << c.cluster;
}

}  // namespace bough::cuda
