#include "kernels/gemm.h"

#include "tests/kernels_cuda/device_tensor.h"
#include "tests/testing/compare.h"

namespace bough {
namespace {

// Sums of up to 4096 products of numbers below 1, in another order.
constexpr Tolerance kF32Tolerance = {.abs = 2e-4, .rel = 1e-5};
constexpr Tolerance kBF16Tolerance = {.abs = 1e-3, .rel = 1.0 / 256};

struct Shape {
  int m, n, k;
};

// Around tiles of 64x64x32, rows that are no multiple of 16 bytes, and a decode's and a prefill's.
const Shape kShapes[] = {{1, 1, 1},        {1, 8, 7},      {3, 5, 33},    {63, 65, 31},
                         {64, 64, 32},     {65, 63, 40},   {130, 70, 96}, {1, 512, 512},
                         {200, 300, 1030}, {16, 256, 4096}};

class Gemm : public CudaTest {};

void ExpectGemmAgreesWithTheCpu(const Shape& s, DType dtype, DType out_dtype) {
  SCOPED_TRACE(testing::Message() << s.m << "x" << s.n << "x" << s.k << " " << Name(dtype) << " -> "
                                  << Name(out_dtype));
  Random random(1);
  const auto x = Rounded(RandomFloats(random, s.m * s.k), dtype);
  const auto w = Rounded(RandomFloats(random, s.n * s.k), dtype);
  std::vector<float> want(s.m * s.n, NAN);
  const DeviceTensor device_x(x, dtype), device_w(w, dtype), y(want, out_dtype);
  cuda::Gemm({.x = device_x.data(),
              .w = device_w.data(),
              .y = y.data(),
              .m = s.m,
              .n = s.n,
              .k = s.k,
              .dtype = dtype,
              .w_dtype = dtype,
              .out_dtype = out_dtype},
             nullptr);
  cpu::Gemm({.x = x.data(), .w = w.data(), .y = want.data(), .m = s.m, .n = s.n, .k = s.k});
  const Tolerance tolerance = out_dtype == DType::kF32 ? kF32Tolerance : kBF16Tolerance;
  EXPECT_TRUE(Close(y.Floats(), want, {s.m, s.n}, tolerance));
}

TEST_F(Gemm, AgreesWithTheCpuInF32) {
  for (const Shape& s : kShapes) ExpectGemmAgreesWithTheCpu(s, DType::kF32, DType::kF32);
}

TEST_F(Gemm, AgreesWithTheCpuInBF16) {
  for (const Shape& s : kShapes) {
    ExpectGemmAgreesWithTheCpu(s, DType::kBF16, DType::kF32);
    ExpectGemmAgreesWithTheCpu(s, DType::kBF16, DType::kBF16);
  }
}

TEST_F(Gemm, GivesARowTheSameBitsInAnyBatch) {
  constexpr int kM = 100, kN = 70, kK = 300;
  Random random(2);
  const DeviceTensor x(RandomFloats(random, kM * kK), DType::kBF16),
      w(RandomFloats(random, kN * kK), DType::kBF16);
  const DeviceTensor all(std::vector<float>(kM * kN), DType::kF32),
      one(std::vector<float>(kN), DType::kF32);
  GemmParams p = {.x = x.data(),
                  .w = w.data(),
                  .y = all.data(),
                  .m = kM,
                  .n = kN,
                  .k = kK,
                  .dtype = DType::kBF16,
                  .w_dtype = DType::kBF16};
  cuda::Gemm(p, nullptr);
  const std::vector<float> batch = all.Floats();
  // Row 96 begins at a multiple of 16 bytes, as operands must.
  p.x = static_cast<uint16_t*>(x.data()) + 96 * kK;
  p.y = one.data();
  p.m = 1;
  cuda::Gemm(p, nullptr);
  const std::vector<float> row_96(batch.begin() + 96 * kN, batch.begin() + 97 * kN);
  EXPECT_TRUE(SameBits(one.Floats(), row_96, {1, kN}));
}

class GroupedGemm : public CudaTest {};

TEST_F(GroupedGemm, AgreesWithTheCpuWithGatheredRowsAndIdleExperts) {
  constexpr int kXRows = 150, kN = 100, kK = 72;
  // Experts with no rows first, in the middle and last; one with more than a tile.
  const std::vector<int32_t> offsets = {0, 0, 1, 1, 140, 205, 205};
  const int num_rows = offsets.back(), num_experts = static_cast<int>(offsets.size()) - 1;
  Random random(3);
  std::vector<int32_t> x_rows(num_rows);
  for (int32_t& r : x_rows) r = RandomInt(random, 0, kXRows - 1);
  const DeviceBytes device_offsets(offsets), device_x_rows(x_rows);
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    for (bool gathered : {true, false}) {
      const auto x = Rounded(RandomFloats(random, (gathered ? kXRows : num_rows) * kK), dtype);
      const auto w = Rounded(RandomFloats(random, num_experts * kN * kK), dtype);
      std::vector<float> want(num_rows * kN, NAN);
      const DeviceTensor device_x(x, dtype), device_w(w, dtype), y(want, dtype);
      GroupedGemmParams p = {.x = device_x.data(),
                             .x_rows = gathered ? device_x_rows.as<int32_t>() : nullptr,
                             .w = device_w.data(),
                             .expert_offsets = device_offsets.as<int32_t>(),
                             .y = y.data(),
                             .num_experts = num_experts,
                             .num_rows = num_rows,
                             .n = kN,
                             .k = kK,
                             .dtype = dtype,
                             .w_dtype = dtype};
      cuda::GroupedGemm(p, nullptr);
      p.x = x.data();
      p.x_rows = gathered ? x_rows.data() : nullptr;
      p.w = w.data();
      p.expert_offsets = offsets.data();
      p.y = want.data();
      p.dtype = p.w_dtype = DType::kF32;
      cpu::GroupedGemm(p);
      const Tolerance tolerance = dtype == DType::kF32 ? kF32Tolerance : kBF16Tolerance;
      EXPECT_TRUE(Close(y.Floats(), want, {num_rows, kN}, tolerance));
    }
  }
}

TEST(GemmDeathTest, RefusesDTypesByName) {
  EXPECT_DEATH(cuda::Gemm({.m = 1, .n = 1, .k = 1, .w_dtype = DType::kF8E4M3}, nullptr),
               "f32 x f8_e4m3 -> f32, CUDA takes");
  EXPECT_DEATH(cuda::GroupedGemm({.num_rows = 1, .n = 1, .k = 1, .w_dtype = DType::kBF16}, nullptr),
               "f32 x bf16, CUDA takes");
}

}  // namespace
}  // namespace bough
