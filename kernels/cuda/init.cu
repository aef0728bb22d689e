// Thread blocks over the columns of a row, grid-stride over the rows: writes are coalesced and no
// index needs a division. Bound by the bytes written; the hash is about 20 integer instructions.
#include <cuda_bf16.h>

#include <algorithm>

#include "common/check.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/init.h"

namespace bough::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxGridRows = 65535;  // the hardware's limit of gridDim.y

__device__ void Store(float value, __nv_bfloat16* out) { *out = __float2bfloat16_rn(value); }
__device__ void Store(float value, float* out) {
  *out = __bfloat162float(__float2bfloat16_rn(value));
}

template <typename T>
__global__ void FillUniformKernel(FillUniformParams p) {
  const int64_t col = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (col >= p.num_cols) return;
  T* out = static_cast<T*>(p.out) + col;
  for (int64_t row = blockIdx.y; row < p.num_rows; row += gridDim.y) {
    const uint64_t i = (p.row_begin + row) * p.tensor_cols + p.col_begin + col;
    Store(fmaf(p.half_width, UniformAt(p.key, i), p.mean), out + row * p.num_cols);
  }
}

}  // namespace

void FillUniform(const FillUniformParams& p, Stream stream) {
  CHECK(p.dtype == DType::kBF16 || p.dtype == DType::kF32) << Name(p.dtype);
  if (p.num_rows == 0 || p.num_cols == 0) return;
  const dim3 grid(static_cast<unsigned>((p.num_cols + kThreads - 1) / kThreads),
                  static_cast<unsigned>(std::min(p.num_rows, kMaxGridRows)));
  if (p.dtype == DType::kF32) {
    FillUniformKernel<float><<<grid, kThreads, 0, stream>>>(p);
  } else {
    FillUniformKernel<__nv_bfloat16><<<grid, kThreads, 0, stream>>>(p);
  }
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace bough::cuda
