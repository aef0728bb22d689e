// Activations between ops, and the products that they meet.
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

// The products of a decoder: y = x w^T, y in the device's activation dtype unless it is asked for in
// another. They share one workspace, so one runs at a time.
class Products {
 public:
  explicit Products(Device* device);

  // x: [m, k], w: [n, k], y: [m, n].
  void Dense(const Rows& x, const Weight& w, int m, int n, int k, void* y) const {
    Dense(x, w, m, n, k, y, dtype_);
  }
  void Dense(const Rows& x, const Weight& w, int m, int n, int k, void* y, DType y_dtype) const;

  // The rows of each expert, as GroupedGemmParams has them. x: [max_rows, k], y: [max_rows, n].
  struct Experts {
    const int32_t* offsets;  // [num_experts + 1]
    int num_experts, max_rows;
    bool offsets_known;  // as GroupedGemmParams
  };
  void Grouped(const Rows& x, const Weight& w, const Experts& experts, int n, int k, void* y) const;

 private:
  Device* const device_;
  const DType dtype_;
  DeviceBuffer workspace_;
};

}  // namespace bough
