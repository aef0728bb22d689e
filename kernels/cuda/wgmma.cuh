// Products of a warpgroup for attention: what sm90.cuh has not, an A operand in registers, a B operand
// turned over, f16, and sums that begin anew. Semantics: PTX ISA 8.0, "wgmma.mma_async".
#pragma once

#include <cuda_fp16.h>

#include <type_traits>

#include "kernels/cuda/sm90.cuh"

namespace bough::cuda {

// Rows of kRowBytes (64 or 128), swizzled as TMA's mode of that width does, eight of them one after
// the other, from a multiple of 8 kRowBytes on. The next 32 bytes of k are at + 2 (units of 16 bytes).
template <int kRowBytes>
__device__ inline uint64_t RowsDescriptor(const void* matrix) {
  static_assert(kRowBytes == 64 || kRowBytes == 128, "TMA's swizzles of whole rows");
  constexpr uint64_t kSwizzle = uint64_t{kRowBytes == 128 ? 1 : 2} << 62;
  constexpr uint64_t kEightRows = uint64_t{8 * kRowBytes >> 4} << 32;
  constexpr uint64_t kUnused = 1ull << 16;  // the leading dimension's stride
  return kSwizzle | kEightRows | kUnused | ((SharedAddress(matrix) & 0x3ffff) >> 4);
}

// A 16-bit B operand whose contiguous axis is the columns: panels of 64 columns (128 bytes, swizzled),
// kPanelBytes apart, rows of k one after the other. The next 16 of k are at + 128.
template <int kPanelBytes>
__device__ inline uint64_t ColumnsDescriptor(const void* matrix) {
  constexpr uint64_t kSwizzle128 = 1ull << 62, kEightRows = uint64_t{1024 >> 4} << 32;
  constexpr uint64_t kNextPanel = uint64_t{kPanelBytes >> 4} << 16;
  return kSwizzle128 | kEightRows | kNextPanel | ((SharedAddress(matrix) & 0x3ffff) >> 4);
}

// Arrival at a barrier on which others sync.
__device__ inline void ArriveThreads(int id, int num_threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

#define BOUGH_WGMMA_SS(KIND, FLAGS, COLUMNS, SIZE, A, B, ADD)                                  \
  asm volatile("{.reg .pred p;\nsetp.ne.b32 p, " ADD                                           \
               ", 0;\n"                                                                        \
               "wgmma.mma_async.sync.aligned.m64n" COLUMNS KIND " {" BOUGH_REGS_##SIZE "}, " A \
               ", " B ", p, 1, 1" FLAGS ";}"                                                   \
               : BOUGH_OUT_##SIZE(0)                                                           \
               : "l"(a), "l"(b), "r"(add))
#define BOUGH_WGMMA_RS(KIND, FLAGS, COLUMNS, SIZE, A, B, ADD)                                   \
  asm volatile("{.reg .pred p;\nsetp.ne.b32 p, " ADD                                            \
               ", 0;\n"                                                                         \
               "wgmma.mma_async.sync.aligned.m64n" COLUMNS KIND " {" BOUGH_REGS_##SIZE "}, {" A \
               "}, " B ", p, 1, 1" FLAGS ";}"                                                   \
               : BOUGH_OUT_##SIZE(0)                                                            \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))
#define BOUGH_WGMMA_OF_TYPE(FORM, FLAGS, COLUMNS, SIZE, A, B, ADD)                     \
  if constexpr (std::is_same_v<T, E4M3>) {                                            \
    BOUGH_WGMMA_##FORM("k32.f32.e4m3.e4m3", "", COLUMNS, SIZE, A, B, ADD);             \
  } else if constexpr (std::is_same_v<T, __half>) {                                   \
    BOUGH_WGMMA_##FORM("k16.f32.f16.f16", FLAGS, COLUMNS, SIZE, A, B, ADD);            \
  } else {                                                                            \
    BOUGH_WGMMA_##FORM("k16.f32.bf16.bf16", FLAGS, COLUMNS, SIZE, A, B, ADD);          \
  }

// d [64, N] = or += a [64, 32 bytes] b [N, 32 bytes]^T; N = 2 * kSize columns. Lane l of warp w holds
// rows 16 w + l / 4 + 8 h, columns 8 j + 2 (l % 4) + c at d[4 j + 2 h + c].
template <typename T, int kSize>
__device__ inline void MultiplyShared(float (&d)[kSize], uint64_t a, uint64_t b, int add) {
  if constexpr (kSize == 32) {
    BOUGH_WGMMA_OF_TYPE(SS, ", 0, 0", "64", 32, "%32", "%33", "%34");
  } else {
    static_assert(kSize == 64, "64 or 128 columns");
    BOUGH_WGMMA_OF_TYPE(SS, ", 0, 0", "128", 64, "%64", "%65", "%66");
  }
}

// The same with a in registers: 4-byte words at column 4 (l % 4) bytes of the rows l / 4 and l / 4 + 8,
// then 16 bytes further of both. kTurned: b is [k, N], by ColumnsDescriptor.
template <typename T, bool kTurned, int kSize>
__device__ inline void MultiplyRegisters(float (&d)[kSize], const uint32_t* a, uint64_t b, int add) {
  static_assert(!kTurned || sizeof(T) == 2, "tensor cores turn over 16-bit elements only");
  if constexpr (kSize == 32 && kTurned) {
    BOUGH_WGMMA_OF_TYPE(RS, ", 1", "64", 32, "%32, %33, %34, %35", "%36", "%37");
  } else if constexpr (kSize == 32) {
    BOUGH_WGMMA_OF_TYPE(RS, ", 0", "64", 32, "%32, %33, %34, %35", "%36", "%37");
  } else if constexpr (kTurned) {
    BOUGH_WGMMA_OF_TYPE(RS, ", 1", "128", 64, "%64, %65, %66, %67", "%68", "%69");
  } else {
    static_assert(kSize == 64, "64 or 128 columns");
    BOUGH_WGMMA_OF_TYPE(RS, ", 0", "128", 64, "%64, %65, %66, %67", "%68", "%69");
  }
}

#undef BOUGH_WGMMA_OF_TYPE
#undef BOUGH_WGMMA_SS
#undef BOUGH_WGMMA_RS

}  // namespace bough::cuda
