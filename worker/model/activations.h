// Activations between ops.
#pragma once

#include "kernels/dtype.h"
#include "worker/model/device_buffer.h"
#include "worker/model/weights.h"

namespace bough {

// Rows as a matrix product takes them.
struct Rows {
  const void* data = nullptr;
  const float* scale = nullptr;  // [rows] when f8_e4m3
  DType dtype = DType::kF32;
};

// Scratch for rows that go into a product: in the device's activation dtype, or quantised when the
// weights are.
class ProductInput {
 public:
  ProductInput() = default;
  ProductInput(Device* device, int64_t max_num_rows, int64_t row_size)
      : activation_dtype_(device->activation_dtype()),
        data_(DeviceBuffer::Scratch(device, max_num_rows * row_size, activation_dtype_)),
        scale_(DeviceBuffer::Scratch(device, max_num_rows, DType::kF32)) {}

  Rows For(const Weight& weight) const {
    if (weight.dtype != DType::kF8E4M3) return {data_.data(), nullptr, activation_dtype_};
    return {data_.data(), scale_.as<float>(), DType::kF8E4M3};
  }
  void* data() const { return data_.data(); }
  float* scale() const { return scale_.as<float>(); }

 private:
  DType activation_dtype_ = DType::kF32;
  DeviceBuffer data_, scale_;
};

}  // namespace bough
