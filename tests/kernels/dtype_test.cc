#include "kernels/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

namespace bough {
namespace {

// IEEE 754 binary16 by its definition.
float F16ByDefinition(uint16_t h) {
  const int sign = h >> 15 ? -1 : 1, exponent = (h >> 10) & 31, mantissa = h & 1023;
  if (exponent == 31) return mantissa ? NAN : sign * std::numeric_limits<float>::infinity();
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
}

TEST(F16ToFloat, IsExactForEachOfThe65536Values) {
  for (int h = 0; h < 65536; ++h) {
    const float got = F16ToFloat(static_cast<uint16_t>(h)), want = F16ByDefinition(h);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(got)) << h;
    } else {
      ASSERT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(want)) << h;
    }
  }
}

TEST(FloatToBF16, ReturnsEachOfThe65536ValuesUnchanged) {
  for (int b = 0; b < 65536; ++b) {
    const float value = BF16ToFloat(static_cast<uint16_t>(b));
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(BF16ToFloat(FloatToBF16(value)))) << b;
    } else {
      ASSERT_EQ(FloatToBF16(value), b);
    }
  }
}

TEST(FloatToBF16, RoundsToNearestAndTiesToEven) {
  const auto round = [](uint32_t bits) { return FloatToBF16(std::bit_cast<float>(bits)); };
  EXPECT_EQ(round(0x3f807fff), 0x3f80);
  EXPECT_EQ(round(0x3f808000), 0x3f80) << "tie, 0x3f80 is even";
  EXPECT_EQ(round(0x3f808001), 0x3f81);
  EXPECT_EQ(round(0x3f818000), 0x3f82) << "tie, 0x3f81 is odd";
  EXPECT_EQ(round(0x7f7fffff), 0x7f80) << "the largest float rounds to infinity";
  EXPECT_TRUE(std::isnan(BF16ToFloat(round(0x7f800001)))) << "a NaN in the lower half stays NaN";
}

}  // namespace
}  // namespace bough
