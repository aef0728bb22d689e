// Tensor maps: how TMA finds boxes of a matrix and swizzles them on their way to shared memory.
#pragma once

#include <cudaTypedefs.h>

#include "kernels/cuda/cuda_check.h"

namespace bough::cuda {

// A [num_rows, row_bytes] matrix in boxes of box_bytes (64 or 128) x box_rows. In shared memory rows
// of a box are box_bytes long and the 16-byte chunks of a row are exchanged as the swizzle of that
// width does: chunk c of row r lies at c ^ (r % 8) with 128 bytes, at c ^ (r / 2 % 4) with 64, if the
// box begins at a multiple of 1024 bytes.
inline CUtensorMap MakeTensorMap(const void* data, int64_t num_rows, int64_t row_bytes,
                                 int box_bytes, int box_rows) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                cudaEnableDefault, &found));
    CHECK(found == cudaDriverEntryPointSuccess) << "the driver has no cuTensorMapEncodeTiled";
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  CHECK(box_bytes == 64 || box_bytes == 128) << "boxes of " << box_bytes << " bytes";
  CUtensorMap map;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(row_bytes),
                              static_cast<cuuint64_t>(num_rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(row_bytes)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(box_bytes), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(data), sizes, strides, box,
             steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             box_bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(result == CUDA_SUCCESS) << "tensor map of [" << num_rows << ", " << row_bytes
                                << "] bytes: error " << static_cast<int>(result);
  return map;
}

}  // namespace bough::cuda
