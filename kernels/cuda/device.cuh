// What all kernels share: element types, 16-byte loads, reductions over a warp and a thread block,
// and launches that overlap their start with the end of the kernel before.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <utility>

#include "kernels/cuda/cuda_check.h"
#include "kernels/dtype.h"
#include "kernels/stream.h"

namespace bough::cuda {

using BF16 = __nv_bfloat16;
using E4M3 = __nv_fp8_e4m3;

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kFullWarp = 0xffffffffu;

__device__ inline float ToFloat(float x) { return x; }
__device__ inline float ToFloat(BF16 x) { return __bfloat162float(x); }
__device__ inline float ToFloat(E4M3 x) { return static_cast<float>(x); }

template <typename T>
__device__ T FromFloat(float x) {
  if constexpr (sizeof(T) == 1) {
    return E4M3(x);  // saturates
  } else if constexpr (sizeof(T) == 2) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// 16 bytes of elements, moved by one instruction.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T v[kSize];
};

// REQUIRES: p is a multiple of 16 bytes.
template <typename T>
__device__ Pack<T> LoadPack(const T* p) {
  return *reinterpret_cast<const Pack<T>*>(p);
}

struct Add {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Max {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return b > a ? b : a;
  }
};

// Every lane gets the result, the same bits in each.
template <typename T, typename Op>
__device__ T WarpReduce(T x, Op op) {
#pragma unroll
  for (int lane = kWarpSize / 2; lane > 0; lane /= 2)
    x = op(x, __shfl_xor_sync(kFullWarp, x, lane));
  return x;
}

// Every thread gets the result. REQUIRES: all threads of the block call it; blockDim.x is a
// multiple of 32, at most 1024. `identity` changes nothing under op.
template <typename T, typename Op>
__device__ T BlockReduce(T x, Op op, T identity) {
  __shared__ T partial[kWarpSize];
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int num_warps = blockDim.x / kWarpSize;
  x = WarpReduce(x, op);
  if (lane == 0) partial[warp] = x;
  __syncthreads();
  x = WarpReduce(lane < num_warps ? partial[lane] : identity, op);
  __syncthreads();  // the next call writes `partial`
  return x;
}

constexpr int CeilDiv(int a, int b) { return (a + b - 1) / b; }

// Programmatic dependent launch. A kernel started by Launch may begin while the one before it on
// the stream still runs, so every thread block calls WaitForPrevious before it touches memory that
// any other kernel writes or reads, and before it ends; weights may be read before. AllowNext lets
// the next kernel begin once all thread blocks have called it or ended. It comes first: the next
// product then asks for its weights while the last one and the kernel between them still run
// (7B models in FP8, batch 1: 5 % of a step).
__device__ inline void WaitForPrevious() { cudaGridDependencySynchronize(); }
__device__ inline void AllowNext() { cudaTriggerProgrammaticLaunchCompletion(); }

template <typename... KernelArgs, typename... Args>
void Launch(void (*kernel)(KernelArgs...), dim3 grid, int num_threads, size_t shared_bytes,
            Stream stream, Args&&... args) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(num_threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...));
}

// Calls run.template operator()<T>() with T the element type of `t`; `what` names the tensor.
template <typename Run>
void DispatchDType(DType t, const char* what, Run run) {
  switch (t) {
    case DType::kF32:
      return run.template operator()<float>();
    case DType::kBF16:
      return run.template operator()<BF16>();
    default:
      CHECK(false) << what << " is " << Name(t) << ", CUDA takes f32 or bf16";
  }
}

}  // namespace bough::cuda
