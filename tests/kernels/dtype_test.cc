#include "kernels/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "tests/testing/fp8.h"

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

TEST(E4M3ToFloat, IsExactForEachOfThe256Codes) {
  for (int code = 0; code < 256; ++code) {
    const float got = E4M3ToFloat(static_cast<uint8_t>(code));
    const float want = static_cast<float>(E4M3ByDefinition(code));
    ASSERT_EQ(std::isnan(got), std::isnan(want)) << code;
    if (std::isnan(want)) continue;
    ASSERT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(want)) << code;
  }
}

TEST(FloatToE4M3, ReturnsEachOfThe256CodesUnchanged) {
  for (int code = 0; code < 256; ++code) {
    const float value = E4M3ToFloat(static_cast<uint8_t>(code));
    ASSERT_EQ(FloatToE4M3(value), std::isnan(value) ? 0x7f : code);
  }
}

// Around each code and each midpoint of two: the places where rounding can go wrong.
TEST(FloatToE4M3, RoundsToNearestAndTiesToEven) {
  for (int code = 0; code < 0x7e; ++code) {
    const double value = E4M3ByDefinition(code), next = E4M3ByDefinition(code + 1);
    for (double place : {value, (value + next) / 2, next}) {
      const float middle = static_cast<float>(place);
      for (float x : {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, 1e3f)}) {
        ASSERT_EQ(FloatToE4M3(x), NearestE4M3(x)) << x;
        ASSERT_EQ(FloatToE4M3(-x), NearestE4M3(-x)) << -x;
      }
    }
  }
}

TEST(FloatToE4M3, RoundsAsTheDefinitionDoesAcrossTheFloats) {
  uint32_t bits = 0;
  for (int i = 0; i < 20000; ++i, bits += 0x9e3779b9u) {  // all exponents and signs, NaN too
    const float x = std::bit_cast<float>(bits);
    ASSERT_EQ(FloatToE4M3(x), NearestE4M3(x)) << x;
  }
}

TEST(FloatToE4M3, SaturatesAndKeepsNaN) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(E4M3ToFloat(FloatToE4M3(463.9f)), 448);
  EXPECT_EQ(E4M3ToFloat(FloatToE4M3(1e9f)), 448);
  EXPECT_EQ(E4M3ToFloat(FloatToE4M3(-kInf)), -448);
  EXPECT_EQ(FloatToE4M3(NAN), 0x7f);
  EXPECT_EQ(FloatToE4M3(-NAN), 0x7f);
}

}  // namespace
}  // namespace bough
