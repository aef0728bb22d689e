// Hopper's own instructions, one function each: barriers in shared memory, tensor copies (TMA),
// products of a warpgroup (wgmma), clusters. Semantics: PTX ISA 8.0, "Asynchronous operations".
#pragma once

#include <cuda.h>

#include "kernels/cuda/device.cuh"

namespace bough::cuda {

inline constexpr int kWarpgroupSize = 128;

__device__ inline uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// --- mbarrier: its phase ends when `num_arrivals` have come and all expected bytes have landed.

__device__ inline void InitBarrier(uint64_t* barrier, int num_arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(num_arrivals));
}

// Makes barriers just initialised visible to the copy engine and to the cluster.
__device__ inline void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives at the barrier in the same place of `cta_rank`'s shared memory.
__device__ inline void ArriveRemote(uint64_t* barrier, int cta_rank) {
  asm volatile(
      "{.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];}" ::"r"(SharedAddress(barrier)),
      "r"(cta_rank)
      : "memory");
}

__device__ inline void Arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}

__device__ inline void ArriveExpectBytes(uint64_t* barrier, int num_bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(num_bytes)
      : "memory");
}

// Returns once the phase of this parity has ended; a new barrier is in phase 0, and 1 has ended.
__device__ inline void Wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;}" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// Barrier `id` (1..15) among num_threads threads of the block.
__device__ inline void SyncThreads(int id, int num_threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

// Registers per thread of this warpgroup from here on; growing waits until others have shrunk.
template <int kNumRegisters>
__device__ inline void GrowRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kNumRegisters));
}
template <int kNumRegisters>
__device__ inline void ShrinkRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kNumRegisters));
}

// --- clusters

__device__ inline int ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

__device__ inline void SyncCluster() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// --- TMA: boxes of a tensor from global to shared memory

// What L2 should do with the lines that a copy reads.
__device__ inline uint64_t EvictFirst() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ inline uint64_t EvictNormal() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ inline uint64_t EvictLast() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ inline void PrefetchTensorMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// The box at (column, row) of a 2-D tensor to `to`; its bytes count towards `barrier`.
__device__ inline void CopyBox(void* to, const CUtensorMap* map, int column, int row,
                               uint64_t* barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(SharedAddress(to)),
      "l"(map), "r"(column), "r"(row), "r"(SharedAddress(barrier)), "l"(policy)
      : "memory");
}

// As CopyBox, to the same place in each thread block of the cluster whose bit is set.
__device__ inline void CopyBoxToCluster(void* to, const CUtensorMap* map, int column, int row,
                                        uint64_t* barrier, uint64_t policy, uint16_t cta_mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5, %6;" ::"r"(
          SharedAddress(to)),
      "l"(map), "r"(column), "r"(row), "r"(SharedAddress(barrier)), "h"(cta_mask), "l"(policy)
      : "memory");
}

// num_bytes (a multiple of 16) at `from` to `to`; they count towards `barrier`.
__device__ inline void CopyBytes(void* to, const void* from, int num_bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(SharedAddress(to)),
      "l"(from), "r"(num_bytes), "r"(SharedAddress(barrier))
      : "memory");
}

// Orders this thread's accesses to shared memory before later ones of the copy engine and wgmma.
__device__ inline void FenceAsyncProxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- between thread blocks, through global memory

__device__ inline uint32_t LoadAcquire(const uint32_t* p) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}

__device__ inline void StoreRelease(uint32_t* p, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}

// --- stmatrix: 8x8 matrices of 16-bit elements, transposed on their way to shared memory. Lane l
// holds row l / 4, columns 2 (l % 4) and + 1 of each; lane 8 i + c gives the address of matrix i's
// column c, 16 bytes.

__device__ inline void StoreTransposed(void* column, uint32_t m0, uint32_t m1) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared::cta.b16 [%0], {%1, %2};" ::"r"(
                   SharedAddress(column)),
               "r"(m0), "r"(m1)
               : "memory");
}
__device__ inline void StoreTransposed(void* column, uint32_t m0, uint32_t m1, uint32_t m2,
                                       uint32_t m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared::cta.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   SharedAddress(column)),
               "r"(m0), "r"(m1), "r"(m2), "r"(m3)
               : "memory");
}

// --- wgmma: d[64, N] += a[64, 32 bytes] b[N, 32 bytes]^T, both in shared memory

// Rows of 128 bytes, swizzled as TMA's 128-byte mode does, from a multiple of 1024 bytes on. The
// next 32 bytes of k are at + 2, the next 8 rows at + 64 (units of 16 bytes).
__device__ inline uint64_t MatrixDescriptor(const void* matrix) {
  constexpr uint64_t kSwizzle128 = 1ull << 62, kEightRows = uint64_t{1024 >> 4} << 32;
  constexpr uint64_t kUnused = 1ull << 16;  // the leading dimension's stride
  return kSwizzle128 | kEightRows | kUnused | ((SharedAddress(matrix) & 0x3ffff) >> 4);
}

// Before the first product after the accumulators were touched.
__device__ inline void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ inline void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until at most kNumGroups committed groups are running.
template <int kNumGroups>
__device__ inline void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kNumGroups) : "memory");
}

// Keeps the compiler from moving uses of `d` to before this place.
template <int kSize>
__device__ inline void PinRegisters(float (&d)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(d[i]));
}

#define BOUGH_REGS_4 "%0,%1,%2,%3"
#define BOUGH_REGS_8 BOUGH_REGS_4 ",%4,%5,%6,%7"
#define BOUGH_REGS_16 BOUGH_REGS_8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define BOUGH_REGS_32 \
  BOUGH_REGS_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define BOUGH_REGS_64                                                                        \
  BOUGH_REGS_32                                                                              \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53" \
  ",%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define BOUGH_REGS_96                                                                        \
  BOUGH_REGS_64                                                                              \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85" \
  ",%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define BOUGH_REGS_128                                                                          \
  BOUGH_REGS_96                                                                                 \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114" \
  ",%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define BOUGH_OUT_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define BOUGH_OUT_8(i) BOUGH_OUT_4(i), BOUGH_OUT_4(i + 4)
#define BOUGH_OUT_16(i) BOUGH_OUT_8(i), BOUGH_OUT_8(i + 8)
#define BOUGH_OUT_32(i) BOUGH_OUT_16(i), BOUGH_OUT_16(i + 16)
#define BOUGH_OUT_64(i) BOUGH_OUT_32(i), BOUGH_OUT_32(i + 32)
#define BOUGH_OUT_96(i) BOUGH_OUT_64(i), BOUGH_OUT_32(i + 64)
#define BOUGH_OUT_128(i) BOUGH_OUT_64(i), BOUGH_OUT_64(i + 64)

// SIZE accumulators; A and B are the operands after them.
#define BOUGH_WGMMA(KIND, FLAGS, COLUMNS, SIZE, A, B)                         \
  asm volatile(                                                               \
      "{.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"                                \
      "wgmma.mma_async.sync.aligned.m64n" COLUMNS KIND " {" BOUGH_REGS_##SIZE \
      "}, " A ", " B ", p, 1, 1" FLAGS ";}"                                   \
      : BOUGH_OUT_##SIZE(0)                                                   \
      : "l"(a), "l"(b))
#define BOUGH_WGMMA_OF_TYPE(COLUMNS, SIZE, A, B)                     \
  if constexpr (sizeof(T) == 1) {                                    \
    BOUGH_WGMMA("k32.f32.e4m3.e4m3", "", COLUMNS, SIZE, A, B);       \
  } else {                                                           \
    BOUGH_WGMMA("k16.f32.bf16.bf16", ", 0, 0", COLUMNS, SIZE, A, B); \
  }

// The first N / 2 of d: lane l of warp w holds rows 16 w + l / 4 + 8 h, columns
// 8 j + 2 (l % 4) + c at d[4 j + 2 h + c].
template <typename T, int N, int kSize>
__device__ inline void Wgmma(float (&d)[kSize], uint64_t a, uint64_t b) {
  static_assert(kSize >= N / 2, "d holds 64 x N sums over 128 threads");
  if constexpr (N == 8) {
    BOUGH_WGMMA_OF_TYPE("8", 4, "%4", "%5");
  } else if constexpr (N == 16) {
    BOUGH_WGMMA_OF_TYPE("16", 8, "%8", "%9");
  } else if constexpr (N == 32) {
    BOUGH_WGMMA_OF_TYPE("32", 16, "%16", "%17");
  } else if constexpr (N == 64) {
    BOUGH_WGMMA_OF_TYPE("64", 32, "%32", "%33");
  } else if constexpr (N == 128) {
    BOUGH_WGMMA_OF_TYPE("128", 64, "%64", "%65");
  } else if constexpr (N == 192) {
    BOUGH_WGMMA_OF_TYPE("192", 96, "%96", "%97");
  } else {
    static_assert(N == 256, "N is 8, 16, 32, 64, 128, 192 or 256");
    BOUGH_WGMMA_OF_TYPE("256", 128, "%128", "%129");
  }
}

#undef BOUGH_WGMMA_OF_TYPE
#undef BOUGH_WGMMA

}  // namespace bough::cuda
