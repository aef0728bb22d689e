// What the attention kernels share: their parameters, their launchers, and how the warps' tensor
// core instructions are fed. attention.cu chooses among the launchers.
#pragma once

#include <cuda_fp16.h>

#include <algorithm>
#include <type_traits>

#include "kernels/attention.h"
#include "kernels/cuda/device.cuh"

namespace bough::cuda {

// The op's parameters, with what kernels ask of them.
struct AttentionParams : PagedAttentionParams {
  __host__ __device__ int HeadsPerKv() const { return num_heads / num_kv_heads; }

  __device__ bool HasOneQuery(int seq) const {
    return cu_seqlens_q[seq + 1] - cu_seqlens_q[seq] == 1;
  }
  __device__ const BF16* Query(int64_t token, int head) const {
    return static_cast<const BF16*>(q) + token * q_stride + head * head_dim;
  }
  __device__ BF16* Output(int64_t token, int head) const {
    return static_cast<BF16*>(o) + (token * num_heads + head) * head_dim;
  }
  __device__ float KScale(int kv_head) const { return k_scale != nullptr ? k_scale[kv_head] : 1; }
  __device__ float VScale(int kv_head) const { return v_scale != nullptr ? v_scale[kv_head] : 1; }
  // Turns a head's products of queries and keys into exponents of 2.
  __device__ float ScoreScale(int kv_head) const {
    return sm_scale * 1.4426950408889634f * KScale(kv_head);
  }
  // Whose table row leads to block `block` of a sequence's: its own, or where a node covers the block
  // the node's first sequence's.
  __device__ int TableSeq(int seq, int block) const {
    if (num_nodes == 0 || block * block_size >= own_begin[seq]) return seq;
    for (int n = 0; n < num_nodes; ++n) {
      const SharedNode node = nodes[n];
      if (node.seq_begin <= seq && seq < node.seq_end && node.key_begin <= block * block_size &&
          block * block_size < node.key_end) {
        return node.seq_begin;
      }
    }
    return seq;
  }
};

// Keys of a block of the cache that the tensor core kernels take.
inline constexpr int kBlockKeys = 64;
// Heads per KV head that they take.
inline constexpr int kMaxHeadsPerKv = 16;

struct WorkPlan;  // attention_work.cuh

// Any head_dim that is a multiple of 32, any block_size, f32 too: plain FMAs. Reads shared keys once
// for every query.
void LaunchPlainAttention(const AttentionParams& p, Stream stream);
// The tensor core kernels. They REQUIRE: bf16 q; a bf16 or e4m3 cache; head_dim 64 or 128; block_size
// kBlockKeys; at most kMaxHeadsPerKv heads per KV head.
//
// The plan, and where it lies in the workspace.
WorkPlan PlanIn(const AttentionParams& p);
int64_t PlanWorkspaceBytes(int max_num_tokens, int max_num_seqs, int num_heads, int num_kv_heads,
                           int head_dim);
void LaunchPlan(const AttentionParams& p, const WorkPlan& plan, Stream stream);
// Its two lists: the tile kernel goes first on the stream, if there are nodes.
void LaunchTileAttention(const AttentionParams& p, const WorkPlan& plan, Stream stream);
void LaunchStreamBF16(const AttentionParams& p, const WorkPlan& plan, Stream stream);
void LaunchStreamE4M3(const AttentionParams& p, const WorkPlan& plan, Stream stream);
// Thread blocks of the tile kernel, at most WorkPlan::kMaxGrid; the same for a plan and its use.
int TileAttentionGrid(const AttentionParams& p);
// Sequences that the plan leaves out, all their keys: those with more than one query, when
// !AllInPlan. The others are left alone.
void LaunchPrefillAttention(const AttentionParams& p, Stream stream);

// Whether the plan holds all sequences, up to 16 rows each; if not, those with one query.
inline bool AllInPlan(const AttentionParams& p) { return p.max_seqlen_q * p.HeadsPerKv() <= 16; }

inline int NumSms() {
  int device = 0, num_sms = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device));
  return num_sms;
}

// The stream kernel's tiles of 8 rows: as many as a batch's entries may need.
inline int StreamTiles(const AttentionParams& p) {
  const int own_rows = p.HeadsPerKv() * (AllInPlan(p) ? p.max_seqlen_q : 1);
  return p.num_nodes > 0 || own_rows > 8 ? 2 : 1;
}
// Its thread blocks an SM: one's parts end while the other's stream.
inline constexpr int kStreamBlocksPerSm = 2;
inline int StreamAttentionGrid() { return NumSms() * kStreamBlocksPerSm; }

// As many thread blocks as the GPU holds at once, at most max_per_sm an SM; lets the kernel have that much shared memory.
template <typename Kernel>
dim3 FillingGrid(Kernel kernel, int num_threads, size_t shared_bytes, int max_per_sm) {
  int per_sm = 0;
  CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  CUDA_CHECK(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, kernel, num_threads, shared_bytes));
  CHECK_GT(per_sm, 0);
  return dim3(NumSms() * std::min(per_sm, max_per_sm));
}

// The 16-bit type in which tensor cores multiply a cache of KV: e4m3 widens to f16 exactly.
template <typename KV>
using MmaType = std::conditional_t<std::is_same_v<KV, E4M3>, __half, BF16>;

// 2^x; 0 for -inf.
__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two elements in one register, the first in the low half.
template <typename T>
__device__ uint32_t PackPair(float first, float second) {
  uint32_t pair;
  if constexpr (std::is_same_v<T, __half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  }
  return pair;
}

// Widens two e4m3, exactly.
__device__ inline uint32_t WidenPair(uint16_t e4m3x2) {
  uint32_t f16x2;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(f16x2) : "h"(e4m3x2));
  return f16x2;
}

// bf16 pairs to T pairs; a no-op for bf16.
template <typename T>
__device__ uint32_t ConvertPair(uint32_t bf16x2) {
  if constexpr (std::is_same_v<T, __half>) {
    return PackPair<__half>(__uint_as_float(bf16x2 << 16), __uint_as_float(bf16x2 & 0xffff0000u));
  } else {
    return bf16x2;
  }
}

template <typename T>
__device__ uint4 ConvertPairs(uint4 bf16) {
  return {ConvertPair<T>(bf16.x), ConvertPair<T>(bf16.y), ConvertPair<T>(bf16.z),
          ConvertPair<T>(bf16.w)};
}

// d [16, 8] += a [16, 16] b [16, 8], spread over a warp. With g = lane / 4, t = lane % 4:
//   a[0], a[1]: rows g, g + 8 at columns 2t, 2t + 1;   a[2], a[3]: at columns 2t + 8, 2t + 9
//   b0: rows 2t, 2t + 1 of column g;                   b1: rows 2t + 8, 2t + 9
//   d[0], d[1]: row g, columns 2t, 2t + 1;             d[2], d[3]: row g + 8
template <typename T>
__device__ void Mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Transposes an 8x8 matrix of 16-bit elements; lane (g, t) holds row g at columns 2t, 2t + 1.
// Volatile: all lanes must take part, so it must not sink into a branch.
__device__ inline uint32_t Transpose8x8(uint32_t rows) {
  uint32_t columns;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(columns) : "r"(rows));
  return columns;
}

// Calls run.template operator()<KV, kHeadDim>(). REQUIRES: what the tensor core kernels require.
template <typename Run>
void DispatchMmaAttention(const AttentionParams& p, Run run) {
  const auto with_head_dim = [&]<typename KV>() {
    if (p.head_dim == 64) return run.template operator()<KV, 64>();
    return run.template operator()<KV, 128>();
  };
  if (p.kv_dtype == DType::kF8E4M3) return with_head_dim.template operator()<E4M3>();
  return with_head_dim.template operator()<BF16>();
}

}  // namespace bough::cuda
