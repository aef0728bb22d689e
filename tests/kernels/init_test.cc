#include "kernels/init.h"

#include <gtest/gtest.h>

#include <vector>

namespace bough {
namespace {

constexpr int64_t kRows = 37, kCols = 53;

std::vector<float> Whole(uint64_t key, float mean, float half_width) {
  std::vector<float> out(kRows * kCols);
  cpu::FillUniform({.out = out.data(),
                    .key = key,
                    .mean = mean,
                    .half_width = half_width,
                    .num_rows = kRows,
                    .num_cols = kCols,
                    .tensor_cols = kCols,
                    .dtype = DType::kF32});
  return out;
}

TEST(FillUniform, FillsTheIntervalEvenly) {
  const std::vector<float> values = Whole(1, 0, 2);
  double sum = 0, squares = 0;
  for (float v : values) {
    ASSERT_LE(std::abs(v), 2);
    sum += v;
    squares += v * v;
  }
  EXPECT_NEAR(sum / values.size(), 0, 0.1);
  EXPECT_NEAR(squares / values.size(), 4.0 / 3, 0.1);
}

TEST(FillUniform, MakesAnyRectangleAloneAndInBothDtypes) {
  const std::vector<float> whole = Whole(7, 0, 0.5f);
  const int64_t rows = 5, cols = 11, row_begin = 31, col_begin = 42;
  std::vector<uint16_t> part(rows * cols);
  cpu::FillUniform({.out = part.data(),
                    .key = 7,
                    .half_width = 0.5f,
                    .row_begin = row_begin,
                    .num_rows = rows,
                    .col_begin = col_begin,
                    .num_cols = cols,
                    .tensor_cols = kCols});
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      EXPECT_EQ(BF16ToFloat(part[r * cols + c]), whole[(row_begin + r) * kCols + col_begin + c]);
    }
  }
}

TEST(FillUniform, DependsOnTheKey) { EXPECT_NE(Whole(1, 0, 1), Whole(2, 0, 1)); }

TEST(FillUniform, WithoutWidthIsTheMean) {
  EXPECT_EQ(Whole(3, 1, 0), std::vector<float>(kRows * kCols, 1.0f));
}

}  // namespace
}  // namespace bough
