#include "kernels/gemm.h"

#include <gtest/gtest.h>

#include <numeric>

#include "tests/testing/compare.h"
#include "tests/testing/fp8.h"
#include "tests/testing/inputs.h"

namespace bough {
namespace {

// An f32 sum of k products below 1 in 8 lanes errs by at most about k/8 * k * 2^-24; k <= 600.
constexpr Tolerance kGemmTolerance = {.abs = 2e-5, .rel = 1e-5};

struct Matrices {
  Matrices(int m, int n, int k, DType w_dtype, int num_experts = 1)
      : m(m), n(n), k(k), w_dtype(w_dtype) {
    Random random(m * 10007 + n * 101 + k);
    x = RandomFloats(random, int64_t{m} * k);
    w = RandomFloats(random, int64_t{num_experts} * n * k);
    if (w_dtype == DType::kBF16) w = RoundToBF16(w);
    w_bits = ToBF16(w);
  }

  const void* WData() const {
    return w_dtype == DType::kBF16 ? static_cast<const void*>(w_bits.data()) : w.data();
  }

  std::vector<float> Multiply(const float* x_data, int rows) const {
    std::vector<float> y(int64_t{rows} * n, NAN);
    cpu::Gemm(
        {.x = x_data, .w = WData(), .y = y.data(), .m = rows, .n = n, .k = k, .w_dtype = w_dtype});
    return y;
  }

  double Product(int x_row, int expert, int out) const {
    double sum = 0;
    for (int i = 0; i < k; ++i) {
      sum += double{x[int64_t{x_row} * k + i]} * w[(int64_t{expert} * n + out) * k + i];
    }
    return sum;
  }

  int m, n, k;
  DType w_dtype;
  std::vector<float> x, w;
  std::vector<uint16_t> w_bits;
};

// Around the tiles: 4 rows x 3 outputs, 8 lanes of k, tasks of 128 rows x 48 outputs.
const std::vector<std::array<int, 3>> kShapes = {
    {0, 5, 8},   {1, 0, 8},    {3, 4, 0},    {1, 1, 1},    {1, 5, 7},      {2, 7, 8},
    {3, 3, 9},   {4, 3, 16},   {5, 4, 15},   {7, 5, 80},   {8, 47, 96},    {9, 48, 512},
    {16, 49, 5}, {37, 96, 80}, {127, 50, 9}, {128, 48, 8}, {129, 100, 17}, {40, 130, 600}};

class GemmOfWeights : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Gemm, GemmOfWeights, testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& info) { return std::string(Name(info.param)); });

TEST_P(GemmOfWeights, MatchesTheFormulaForEachShape) {
  for (const auto& [m, n, k] : kShapes) {
    SCOPED_TRACE(testing::Message() << m << "x" << n << "x" << k);
    const Matrices matrices(m, n, k, GetParam());
    std::vector<double> want;
    for (int r = 0; r < m; ++r) {
      for (int c = 0; c < n; ++c) want.push_back(matrices.Product(r, 0, c));
    }
    EXPECT_TRUE(Close(matrices.Multiply(matrices.x.data(), m), want, {m, n}, kGemmTolerance));
  }
}

TEST_P(GemmOfWeights, GivesARowTheSameBitsAloneAndInABatch) {
  for (int k : {7, 80, 96, 512}) {
    SCOPED_TRACE(k);
    const Matrices matrices(37, 101, k, GetParam());
    const std::vector<float> batch = matrices.Multiply(matrices.x.data(), 37);
    std::vector<float> alone;
    for (int r = 0; r < 37; ++r) {
      const std::vector<float> row = matrices.Multiply(&matrices.x[r * k], 1);
      alone.insert(alone.end(), row.begin(), row.end());
    }
    EXPECT_TRUE(SameBits(alone, batch, {37, 101}));
  }
}

// A tensor-parallel rank holds some of the outputs: they keep their bits.
TEST_P(GemmOfWeights, GivesAnOutputTheSameBitsInAnySliceOfTheWeights) {
  const Matrices whole(37, 101, 96, GetParam());
  Matrices slice = whole;
  slice.n = 40;
  slice.w.erase(slice.w.begin(), slice.w.begin() + 50 * 96);
  slice.w_bits.erase(slice.w_bits.begin(), slice.w_bits.begin() + 50 * 96);
  const std::vector<float> y = whole.Multiply(whole.x.data(), 37);
  std::vector<float> want;
  for (int r = 0; r < 37; ++r) want.insert(want.end(), &y[r * 101 + 50], &y[r * 101 + 90]);
  EXPECT_TRUE(SameBits(slice.Multiply(slice.x.data(), 37), want, {37, 40}));
}

std::vector<float> MultiplyGrouped(const Matrices& matrices, const std::vector<int32_t>& offsets) {
  std::vector<float> y(int64_t{matrices.m} * matrices.n, 7);
  cpu::GroupedGemm({.x = matrices.x.data(),
                    .w = matrices.WData(),
                    .expert_offsets = offsets.data(),
                    .y = y.data(),
                    .num_experts = static_cast<int>(offsets.size()) - 1,
                    .num_rows = matrices.m,
                    .n = matrices.n,
                    .k = matrices.k,
                    .w_dtype = matrices.w_dtype});
  return y;
}

// 3 rows more than the offsets name: they are not touched.
TEST_P(GemmOfWeights, GroupedMatchesTheFormulaForEachSplitOfRows) {
  const std::vector<std::vector<int32_t>> splits = {
      {0, 0}, {0, 1}, {0, 0, 0, 1}, {0, 3, 3, 7, 8}, {0, 0, 130, 130, 260, 261, 261}};
  for (const auto& offsets : splits) {
    SCOPED_TRACE(testing::PrintToString(offsets));
    const int num_experts = static_cast<int>(offsets.size()) - 1, n = 50;
    const Matrices matrices(offsets.back() + 3, n, 72, GetParam(), num_experts);
    std::vector<double> want;
    for (int e = 0; e < num_experts; ++e) {
      for (int r = offsets[e]; r < offsets[e + 1]; ++r) {
        for (int c = 0; c < n; ++c) want.push_back(matrices.Product(r, e, c));
      }
    }
    want.resize(matrices.m * n, 7);
    EXPECT_TRUE(Close(MultiplyGrouped(matrices, offsets), want, {matrices.m, n}, kGemmTolerance));
  }
}

TEST_P(GemmOfWeights, GroupedWithOneExpertEqualsGemmBitByBit) {
  const Matrices matrices(37, 101, 96, GetParam());
  EXPECT_TRUE(SameBits(MultiplyGrouped(matrices, {0, 37}), matrices.Multiply(matrices.x.data(), 37),
                       {37, 101}));
}

// An f32 sum of exact products, then two factors: one rounding each.
constexpr Tolerance kF8Tolerance = {.abs = 3e-5, .rel = 1e-5};

std::vector<float> MultiplyF8(const QuantizedRows& x, const QuantizedRows& w, int n, int k,
                              const std::vector<int32_t>& offsets) {
  std::vector<float> y(offsets.back() * n, NAN);
  cpu::GroupedGemm({.x = x.elements.data(),
                    .x_scale = x.scales.data(),
                    .w = w.elements.data(),
                    .w_scale = w.scales.data(),
                    .expert_offsets = offsets.data(),
                    .y = y.data(),
                    .num_experts = static_cast<int>(offsets.size()) - 1,
                    .num_rows = offsets.back(),
                    .n = n,
                    .k = k,
                    .dtype = DType::kF8E4M3,
                    .w_dtype = DType::kF8E4M3});
  return y;
}

TEST(F8Gemm, MultipliesTheValuesThatTheScalesGive) {
  const int n = 50, k = 75;
  for (const std::vector<int32_t>& offsets :
       {std::vector<int32_t>{0, 0}, {0, 1}, {0, 3, 3, 7}, {0, 130, 133}}) {
    SCOPED_TRACE(testing::PrintToString(offsets));
    const int m = offsets.back(), num_experts = static_cast<int>(offsets.size()) - 1;
    Matrices matrices(m, n, k, DType::kF32, num_experts);
    const QuantizedRows x = QuantizeRows(matrices.x, m);
    const QuantizedRows w = QuantizeRows(matrices.w, num_experts * n);
    matrices.x = x.Floats();
    matrices.w = w.Floats();
    std::vector<double> want;
    for (int e = 0; e < num_experts; ++e) {
      for (int r = offsets[e]; r < offsets[e + 1]; ++r) {
        for (int c = 0; c < n; ++c) want.push_back(matrices.Product(r, e, c));
      }
    }
    EXPECT_TRUE(Close(MultiplyF8(x, w, n, k, offsets), want, {m, n}, kF8Tolerance));
  }
}

TEST(F8Gemm, GivesARowTheSameBitsAloneAndInABatch) {
  const int m = 37, n = 101, k = 96;
  const Matrices matrices(m, n, k, DType::kF32);
  const QuantizedRows x = QuantizeRows(matrices.x, m), w = QuantizeRows(matrices.w, n);
  std::vector<float> alone;
  for (int r = 0; r < m; ++r) {
    const QuantizedRows row = {{x.elements.begin() + r * k, x.elements.begin() + (r + 1) * k},
                               {x.scales[r]}};
    const std::vector<float> y = MultiplyF8(row, w, n, k, {0, 1});
    alone.insert(alone.end(), y.begin(), y.end());
  }
  EXPECT_TRUE(SameBits(alone, MultiplyF8(x, w, n, k, {0, m}), {m, n}));
}

TEST(GemmDeathTest, RefusesF8RowsWithWeightsThatAreNot) {
  EXPECT_DEATH(cpu::Gemm({.m = 1, .n = 1, .k = 1, .dtype = DType::kF8E4M3}),
               "x is f8_e4m3 and w f32, the CPU takes f32 rows, or both f8_e4m3");
}

}  // namespace
}  // namespace bough
