// Test tensors on the GPU, made from floats and read back as floats whatever their dtype.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstring>
#include <utility>
#include <vector>

#include "kernels/cuda/cuda_check.h"
#include "tests/testing/inputs.h"

namespace bough {

// Skips where there is no GPU.
class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    int num_devices = 0;
    if (cudaGetDeviceCount(&num_devices) != cudaSuccess || num_devices == 0) {
      GTEST_SKIP() << "no CUDA device on this machine";
    }
  }
};

// `values` as they are once rounded to `dtype`.
inline std::vector<float> Rounded(std::vector<float> values, DType dtype) {
  return dtype == DType::kBF16 ? RoundToBF16(std::move(values)) : values;
}

// Device memory that holds a copy of the host's.
class DeviceBytes {
 public:
  DeviceBytes(const void* host, size_t num_bytes) : num_bytes_(num_bytes) {
    CUDA_CHECK(cudaMalloc(&data_, num_bytes + 1));  // + 1: empty tensors have an address too
    CUDA_CHECK(cudaMemcpy(data_, host, num_bytes, cudaMemcpyHostToDevice));
  }
  template <typename T>
  explicit DeviceBytes(const std::vector<T>& host)
      : DeviceBytes(host.data(), host.size() * sizeof(T)) {}
  ~DeviceBytes() { CUDA_CHECK(cudaFree(data_)); }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

  // Waits for all kernels.
  template <typename T>
  std::vector<T> Download() const {
    std::vector<T> host(num_bytes_ / sizeof(T));
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaMemcpy(host.data(), data_, num_bytes_, cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  void* data_ = nullptr;
  size_t num_bytes_;
};

class DeviceTensor {
 public:
  DeviceTensor(const std::vector<float>& values, DType dtype)
      : dtype_(dtype),
        bytes_(dtype == DType::kBF16 ? DeviceBytes(ToBF16(values)) : DeviceBytes(values)) {}

  void* data() const { return bytes_.as<void>(); }

  std::vector<float> Floats() const {
    if (dtype_ == DType::kF32) return bytes_.Download<float>();
    std::vector<float> values;
    for (uint16_t bits : bytes_.Download<uint16_t>()) values.push_back(BF16ToFloat(bits));
    return values;
  }

 private:
  DType dtype_;
  DeviceBytes bytes_;
};

}  // namespace bough
