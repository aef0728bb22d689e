// CUDA_CHECK(call): CUDA's errors are sticky, so the process ends, with place and reason.
#pragma once

#include <cuda_runtime.h>

#include "common/check.h"

#define CUDA_CHECK(expr)                                                                   \
  do {                                                                                     \
    const cudaError_t cuda_error_ = (expr);                                                \
    CHECK(cuda_error_ == cudaSuccess) << #expr << ": " << cudaGetErrorString(cuda_error_); \
  } while (false)
