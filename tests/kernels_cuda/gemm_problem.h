// Products on the GPU whose right answer is known to the last bit, however they are summed.
#pragma once

#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <thread>
#include <vector>

#include "kernels/gemm.h"
#include "tests/kernels_cuda/device_tensor.h"
#include "tests/testing/compare.h"

namespace bough {

// Elements are small integers and scales powers of two, so every sum is exact whatever its order,
// and results are compared bit by bit.
inline std::vector<float> RandomIntegers(Random& random, int64_t size) {
  std::vector<float> values(size);
  for (float& v : values) v = static_cast<float>(random() % 5) - 2;
  return values;
}

inline std::vector<float> RandomScales(Random& random, int64_t size) {
  std::vector<float> values(size);
  for (float& v : values) v = std::ldexp(1.0f, RandomInt(random, -2, 2));
  return values;
}

inline std::vector<uint8_t> Encoded(const std::vector<float>& values, DType dtype) {
  std::vector<uint8_t> bytes(values.size() * SizeOf(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kF8E4M3) {
      bytes[i] = __nv_cvt_float_to_fp8(values[i], __NV_SATFINITE, __NV_E4M3);
    } else if (dtype == DType::kBF16) {
      const uint16_t bits = FloatToBF16(values[i]);
      std::memcpy(&bytes[2 * i], &bits, 2);
    } else {
      std::memcpy(&bytes[4 * i], &values[i], 4);
    }
  }
  return bytes;
}

inline std::vector<float> Decoded(const std::vector<uint8_t>& bytes, DType dtype) {
  std::vector<float> values(bytes.size() / SizeOf(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kBF16) {
      uint16_t bits;
      std::memcpy(&bits, &bytes[2 * i], 2);
      values[i] = BF16ToFloat(bits);
    } else {
      std::memcpy(&values[i], &bytes[4 * i], 4);
    }
  }
  return values;
}

// Zero counters, and data that shows if it is read before it is written.
class Workspace {
 public:
  Workspace() {
    CUDA_CHECK(cudaMalloc(&data_, kGemmWorkspaceBytes));
    CUDA_CHECK(cudaMemset(data_, 0xff, kGemmWorkspaceBytes));
    CUDA_CHECK(cudaMemset(data_, 0, kCountersBytes));
  }
  ~Workspace() { CUDA_CHECK(cudaFree(data_)); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }

  bool CountersAreZero() const {
    std::vector<uint8_t> counters(kCountersBytes);
    CUDA_CHECK(cudaMemcpy(counters.data(), data_, kCountersBytes, cudaMemcpyDeviceToHost));
    return std::count(counters.begin(), counters.end(), 0) == kCountersBytes;
  }

 private:
  static constexpr int kCountersBytes = 4096;
  void* data_ = nullptr;
};

template <typename Body>
void ParallelFor(int64_t size, Body body) {
  const int num_threads = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> threads;
  for (int t = 0; t < num_threads; ++t) {
    threads.emplace_back([&, t] {
      for (int64_t i = t; i < size; i += num_threads) body(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

struct Problem {
  std::vector<int> rows_per_expert;
  int n, k;
  int num_spare_rows = 0;  // past the last expert's
  DType dtype = DType::kF8E4M3, out_dtype = DType::kBF16;
};

// A problem's inputs on both sides.
class Product {
 public:
  Product(Random& random, const Problem& problem)
      : p_(problem),
        offsets_(problem.rows_per_expert.size() + 1),
        num_rows_(Offsets() + problem.num_spare_rows),
        scaled_(problem.dtype == DType::kF8E4M3),
        x_(RandomIntegers(random, int64_t{num_rows_} * p_.k)),
        w_(RandomIntegers(random, int64_t{NumExperts()} * p_.n * p_.k)),
        x_scale_(RandomScales(random, num_rows_)),
        w_scale_(RandomScales(random, int64_t{NumExperts()} * p_.n)),
        device_x_(WithPoisonedSpareRows(Encoded(x_, p_.dtype))),
        device_w_(Encoded(w_, p_.dtype)),
        device_x_scale_(x_scale_),
        device_w_scale_(w_scale_),
        device_offsets_(offsets_),
        y_(std::vector<uint8_t>(NumYBytes(), 0xff)) {}

  int NumExperts() const { return static_cast<int>(p_.rows_per_expert.size()); }

  GroupedGemmParams Params() const {
    return {.x = device_x_.as<void>(),
            .x_scale = scaled_ ? device_x_scale_.as<float>() : nullptr,
            .w = device_w_.as<void>(),
            .w_scale = scaled_ ? device_w_scale_.as<float>() : nullptr,
            .expert_offsets = device_offsets_.as<int32_t>(),
            .y = y_.as<void>(),
            .workspace = workspace_.data(),
            .num_experts = NumExperts(),
            .num_rows = num_rows_,
            .n = p_.n,
            .k = p_.k,
            .dtype = p_.dtype,
            .w_dtype = p_.dtype,
            .out_dtype = p_.out_dtype};
  }

  // As Params, told to the op as a dense product.
  GemmParams DenseParams() const {
    const GroupedGemmParams p = Params();
    return {.x = p.x,
            .x_scale = p.x_scale,
            .w = p.w,
            .w_scale = p.w_scale,
            .y = p.y,
            .workspace = p.workspace,
            .m = p.num_rows,
            .n = p.n,
            .k = p.k,
            .dtype = p.dtype,
            .w_dtype = p.w_dtype,
            .out_dtype = p.out_dtype};
  }

  // x becomes what `other`'s y should be: exact in bf16, as its k is small.
  void TakeTokensFrom(const Product& other) { x_ = other.WantedY(); }

  void PoisonY() { CUDA_CHECK(cudaMemset(y_.as<void>(), 0xff, NumYBytes())); }

  std::vector<float> WantedY() const {
    std::vector<float> want(int64_t{num_rows_} * p_.n);
    ParallelFor(num_rows_, [&](int64_t row) {
      const auto after = std::upper_bound(offsets_.begin(), offsets_.end(), row);
      for (int n = 0; n < p_.n; ++n) {
        want[row * p_.n + n] =
            after == offsets_.end() ? NAN : Want(row, after - offsets_.begin() - 1, n);
      }
    });
    return want;
  }

  // Every row is right, spare ones are as they were, and the counters are zero again.
  void ExpectRight() const {
    const std::vector<float> want = WantedY();
    const std::vector<uint8_t> bytes = y_.Download<uint8_t>();
    const auto same = Compare(Decoded(bytes, p_.out_dtype), want, {num_rows_, p_.n},
                              [](float g, float w) { return !(g == w || (g != g && w != w)); });
    EXPECT_TRUE(same);
    EXPECT_TRUE(workspace_.CountersAreZero());
  }

 private:
  int64_t NumYBytes() const { return int64_t{num_rows_} * p_.n * SizeOf(p_.out_dtype); }

  int Offsets() {
    std::partial_sum(p_.rows_per_expert.begin(), p_.rows_per_expert.end(), offsets_.begin() + 1);
    return offsets_.back();
  }

  std::vector<uint8_t> WithPoisonedSpareRows(std::vector<uint8_t> bytes) const {
    const int64_t row_bytes = int64_t{p_.k} * SizeOf(p_.dtype);
    std::fill(bytes.begin() + offsets_.back() * row_bytes, bytes.end(), 0x7f);
    return bytes;
  }

  float Want(int64_t row, int64_t expert, int n) const {
    const float* x = &x_[row * p_.k];
    const float* w = &w_[(expert * p_.n + n) * p_.k];
    float sum = 0;
    for (int k = 0; k < p_.k; ++k) sum += x[k] * w[k];
    if (scaled_) sum *= x_scale_[row] * w_scale_[expert * p_.n + n];
    return p_.out_dtype == DType::kBF16 ? BF16ToFloat(FloatToBF16(sum)) : sum;
  }

  Problem p_;
  std::vector<int32_t> offsets_;
  int num_rows_;
  bool scaled_;
  std::vector<float> x_, w_, x_scale_, w_scale_;
  DeviceBytes device_x_, device_w_, device_x_scale_, device_w_scale_, device_offsets_, y_;
  Workspace workspace_;
};

}  // namespace bough
