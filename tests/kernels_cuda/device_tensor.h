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

inline std::vector<uint8_t> ToE4M3(const std::vector<float>& values) {
  std::vector<uint8_t> codes(values.size());
  for (size_t i = 0; i < values.size(); ++i) codes[i] = FloatToE4M3(values[i]);
  return codes;
}

// `values` as they are once rounded to `dtype`.
inline std::vector<float> Rounded(std::vector<float> values, DType dtype) {
  if (dtype == DType::kBF16) return RoundToBF16(std::move(values));
  if (dtype == DType::kF8E4M3) {
    for (float& v : values) v = E4M3ToFloat(FloatToE4M3(v));
  }
  return values;
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

// f8_e4m3 elements are the values rounded to e4m3: a scale is the caller's.
class DeviceTensor {
 public:
  DeviceTensor(const std::vector<float>& values, DType dtype)
      : dtype_(dtype),
        bytes_(dtype == DType::kBF16     ? DeviceBytes(ToBF16(values))
               : dtype == DType::kF8E4M3 ? DeviceBytes(ToE4M3(values))
                                         : DeviceBytes(values)) {}

  void* data() const { return bytes_.as<void>(); }

  std::vector<float> Floats() const {
    if (dtype_ == DType::kF32) return bytes_.Download<float>();
    std::vector<float> values;
    if (dtype_ == DType::kBF16) {
      for (uint16_t bits : bytes_.Download<uint16_t>()) values.push_back(BF16ToFloat(bits));
    } else {
      for (uint8_t code : bytes_.Download<uint8_t>()) values.push_back(E4M3ToFloat(code));
    }
    return values;
  }

 private:
  DType dtype_;
  DeviceBytes bytes_;
};

}  // namespace bough
