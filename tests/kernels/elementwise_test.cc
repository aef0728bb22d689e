#include "kernels/elementwise.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "kernels/kv_layout.h"
#include "tests/testing/compare.h"
#include "tests/testing/fp8.h"
#include "tests/testing/inputs.h"

namespace bough {
namespace {

using testing::ElementsAre;

// A few f32 operations on numbers below 10, an f32 mean of up to 512 squares.
constexpr Tolerance kElementwiseTolerance = {.abs = 1e-6, .rel = 2e-6};
// The angle is an f32 product: at position 4000 its last bit is 1.2e-4, half of it times |x| <= 1.
constexpr Tolerance kRopeTolerance = {.abs = 4e-4, .rel = 0};
constexpr Tolerance kRopeNearTolerance = {.abs = 1e-5, .rel = 0};  // positions below 64

TEST(Embedding, CopiesRowsOfAnF32Table) {
  const std::vector<float> table = {0, 1, 2, 10, 11, 12, 20, 21, 22};
  const std::vector<int32_t> ids = {2, 0, 2};
  std::vector<float> out(9);
  cpu::Embedding({.ids = ids.data(),
                  .table = table.data(),
                  .out = out.data(),
                  .num_tokens = 3,
                  .hidden_size = 3});
  EXPECT_THAT(out, ElementsAre(20, 21, 22, 0, 1, 2, 20, 21, 22));
}

TEST(Embedding, WidensABF16Table) {
  const std::vector<uint16_t> table = ToBF16({1.5f, -2, 0.25f, 3});
  const int32_t id = 1;
  std::vector<float> out(2);
  cpu::Embedding({.ids = &id,
                  .table = table.data(),
                  .out = out.data(),
                  .num_tokens = 1,
                  .hidden_size = 2,
                  .table_dtype = DType::kBF16});
  EXPECT_THAT(out, ElementsAre(0.25f, 3.0f));
}

TEST(Embedding, TakesANegativeIdFromTheSampledTokens) {
  const std::vector<float> table = {0, 1, 10, 11, 20, 21};
  const std::vector<int32_t> ids = {-2, 0, -1}, sampled = {2, 1};
  std::vector<float> out(6);
  cpu::Embedding({.ids = ids.data(),
                  .sampled = sampled.data(),
                  .table = table.data(),
                  .out = out.data(),
                  .num_tokens = 3,
                  .hidden_size = 2});
  EXPECT_THAT(out, ElementsAre(10, 11, 0, 1, 20, 21));
}

void ExpectNormMatchesTheFormula(int num_tokens, int hidden, bool add, float scale) {
  Random random(num_tokens * 1000 + hidden);
  const std::vector<float> x = RandomFloats(random, int64_t{num_tokens} * hidden, scale);
  const std::vector<float> before = RandomFloats(random, int64_t{num_tokens} * hidden, scale);
  const std::vector<float> weight = RandomFloats(random, hidden);
  std::vector<float> residual = before, out(x.size(), NAN);
  cpu::AddRmsNorm({.x = add ? x.data() : nullptr,
                   .residual = residual.data(),
                   .weight = weight.data(),
                   .out = out.data(),
                   .num_tokens = num_tokens,
                   .hidden_size = hidden,
                   .eps = 1e-5f});
  std::vector<double> sum, want;
  for (size_t i = 0; i < x.size(); ++i) sum.push_back(double{before[i]} + (add ? x[i] : 0));
  for (int t = 0; t < num_tokens; ++t) {
    double squares = 0;
    for (int i = 0; i < hidden; ++i) squares += sum[t * hidden + i] * sum[t * hidden + i];
    for (int i = 0; i < hidden; ++i) {
      want.push_back(sum[t * hidden + i] / std::sqrt(squares / hidden + 1e-5) * weight[i]);
    }
  }
  EXPECT_TRUE(Close(residual, sum, {num_tokens, hidden}, kElementwiseTolerance));
  EXPECT_TRUE(Close(out, want, {num_tokens, hidden}, kElementwiseTolerance));
}

TEST(AddRmsNorm, MatchesTheFormulaForEachShape) {
  for (int num_tokens : {0, 1, 3, 300}) {
    for (int hidden : {1, 7, 8, 9, 512}) {
      for (bool add : {false, true}) {
        SCOPED_TRACE(testing::Message() << num_tokens << "x" << hidden << (add ? " + x" : ""));
        ExpectNormMatchesTheFormula(num_tokens, hidden, add, 2);
        ExpectNormMatchesTheFormula(num_tokens, hidden, add, 1e-4f);  // eps dominates
      }
    }
  }
}

TEST(AddRmsNorm, MayWriteOverX) {
  std::vector<float> x = {3, 4}, residual = {0, 0};
  const std::vector<float> weight = {1, 2};
  cpu::AddRmsNorm({.x = x.data(),
                   .residual = residual.data(),
                   .weight = weight.data(),
                   .out = x.data(),
                   .num_tokens = 1,
                   .hidden_size = 2,
                   .eps = 0});
  const double rms = std::sqrt(12.5);
  EXPECT_TRUE(Close(x, std::vector<double>{3 / rms, 8 / rms}, {2}, kElementwiseTolerance));
  EXPECT_THAT(residual, ElementsAre(3, 4));
}

// The op on a copy of `residual`, once to f32 and once to f8_e4m3.
TEST(AddRmsNorm, QuantizesTheF32Row) {
  for (int hidden : {1, 7, 8, 512}) {
    Random random(hidden);
    const std::vector<float> before = RandomFloats(random, 3 * hidden, 2);
    const std::vector<float> weight = RandomFloats(random, hidden);
    std::vector<float> residual = before, out(3 * hidden);
    AddRmsNormParams p = {.residual = residual.data(),
                          .weight = weight.data(),
                          .out = out.data(),
                          .num_tokens = 3,
                          .hidden_size = hidden};
    cpu::AddRmsNorm(p);
    QuantizedRows got = {std::vector<uint8_t>(3 * hidden, 0x7f), std::vector<float>(3, NAN)};
    p.out = got.elements.data();
    p.out_scale = got.scales.data();
    p.out_dtype = DType::kF8E4M3;
    cpu::AddRmsNorm(p);
    const QuantizedRows want = QuantizeRows(out, 3);
    EXPECT_EQ(got.elements, want.elements);
    EXPECT_EQ(got.scales, want.scales);
  }
}

TEST(SiluMul, MatchesTheFormulaForEachSize) {
  for (int num_tokens : {0, 1, 3, 100}) {
    for (int size : {1, 7, 8, 9, 256}) {
      SCOPED_TRACE(testing::Message() << num_tokens << "x" << size);
      Random random(size);
      const std::vector<float> gate_up = RandomFloats(random, int64_t{num_tokens} * 2 * size, 10);
      std::vector<float> out(int64_t{num_tokens} * size, NAN);
      cpu::SiluMul(
          {.gate_up = gate_up.data(), .out = out.data(), .num_tokens = num_tokens, .size = size});
      std::vector<double> want;
      for (int t = 0; t < num_tokens; ++t) {
        for (int i = 0; i < size; ++i) {
          const double gate = gate_up[t * 2 * size + i], up = gate_up[t * 2 * size + size + i];
          want.push_back(gate / (1 + std::exp(-gate)) * up);
        }
      }
      EXPECT_TRUE(Close(out, want, {num_tokens, size}, kElementwiseTolerance));
    }
  }
}

TEST(SiluMul, SaturatesWithoutOverflowAndKeepsNaN) {
  const std::vector<float> gate_up = {-1000, 1000, 0, NAN, /**/ 2, 2, 2, 2};
  std::vector<float> out(4);
  cpu::SiluMul({.gate_up = gate_up.data(), .out = out.data(), .num_tokens = 1, .size = 4});
  EXPECT_NEAR(out[0], 0, 1e-30);
  EXPECT_EQ(out[1], 2000);
  EXPECT_EQ(out[2], 0);
  EXPECT_TRUE(std::isnan(out[3]));
}

// Sum of (value - x)^2 of one quantised row.
double SquaredError(const float* x, const uint8_t* elements, float scale, int size) {
  double error = 0;
  for (int i = 0; i < size; ++i) {
    const double difference = E4M3ToFloat(elements[i]) * double{scale} - x[i];
    error += difference * difference;
  }
  return error;
}

TEST(QuantizeWeights, TakesTheScaleOfTheLeastErrorForEachSize) {
  for (int size : {1, 7, 64, 1000}) {
    SCOPED_TRACE(size);
    constexpr int kRows = 5;
    Random random(size);
    const std::vector<float> x = RandomFloats(random, kRows * size, 2);
    std::vector<uint8_t> got(kRows * size, 0x7f);
    std::vector<float> scales(kRows, NAN);
    cpu::QuantizeWeights({.x = x.data(),
                          .out = got.data(),
                          .scale = scales.data(),
                          .num_rows = kRows,
                          .size = size});
    for (int r = 0; r < kRows; ++r) {
      const float* row = x.data() + r * size;
      float amax = 0;
      for (int i = 0; i < size; ++i) amax = std::max(amax, std::abs(row[i]));
      double least_error = INFINITY;
      for (int j = 0; j < kNumScaleSteps; ++j) {
        const float scale = amax / kMaxE4M3 * (1 + static_cast<float>(j) / kNumScaleSteps);
        std::vector<uint8_t> elements(size);
        for (int i = 0; i < size; ++i) elements[i] = FloatToE4M3(row[i] / scale);
        least_error = std::min(least_error, SquaredError(row, elements.data(), scale, size));
      }
      const double error = SquaredError(row, got.data() + r * size, scales[r], size);
      EXPECT_LE(error, least_error * 1.001 + 1e-12);  // f32 sums choose among near equals
    }
  }
}

TEST(QuantizeWeights, LeavesARowOfZerosZero) {
  const std::vector<float> x(16, -0.0f);
  std::vector<uint8_t> got(16, 0x7f);
  float scale = NAN;
  cpu::QuantizeWeights(
      {.x = x.data(), .out = got.data(), .scale = &scale, .num_rows = 1, .size = 16});
  for (uint8_t element : got) EXPECT_EQ(E4M3ToFloat(element), 0);
  EXPECT_EQ(scale, 0);
}

TEST(SiluMul, QuantizesTheF32RowAndStopsAtNumRows) {
  constexpr int kTokens = 5, kSize = 21;
  Random random(1);
  const std::vector<float> gate_up = RandomFloats(random, kTokens * 2 * kSize, 5);
  for (int32_t num_rows : {0, 2, 5}) {
    std::vector<float> out(kTokens * kSize, 7);
    SiluMulParams p = {.gate_up = gate_up.data(),
                       .out = out.data(),
                       .num_rows = &num_rows,
                       .num_tokens = kTokens,
                       .size = kSize};
    cpu::SiluMul(p);
    EXPECT_EQ(std::count(out.begin(), out.end(), 7), (kTokens - num_rows) * kSize);

    QuantizedRows got = {std::vector<uint8_t>(kTokens * kSize, 0x7f),
                         std::vector<float>(kTokens, -7)};
    p.out = got.elements.data();
    p.out_scale = got.scales.data();
    p.out_dtype = DType::kF8E4M3;
    cpu::SiluMul(p);
    QuantizedRows want = QuantizeRows(out, kTokens);
    std::fill(want.elements.begin() + num_rows * kSize, want.elements.end(), 0x7f);
    std::fill(want.scales.begin() + num_rows, want.scales.end(), -7);
    EXPECT_EQ(got.elements, want.elements);
    EXPECT_EQ(got.scales, want.scales);
  }
}

QuantizedRows Quantize(const std::vector<float>& x, int num_rows) {
  QuantizedRows got = {std::vector<uint8_t>(x.size(), 0x7f), std::vector<float>(num_rows, NAN)};
  cpu::Quantize({.x = x.data(),
                 .out = got.elements.data(),
                 .scale = got.scales.data(),
                 .num_rows = num_rows,
                 .size = num_rows == 0 ? 0 : static_cast<int>(x.size()) / num_rows});
  return got;
}

TEST(Quantize, MatchesTheDefinitionForEachShape) {
  for (int num_rows : {0, 1, 3, 40}) {
    for (int size : {1, 8, 9, 300}) {
      Random random(size);
      const std::vector<float> x = RandomFloats(random, num_rows * size, 30);
      const QuantizedRows got = Quantize(x, num_rows), want = QuantizeRows(x, num_rows);
      EXPECT_EQ(got.elements, want.elements);
      EXPECT_EQ(got.scales, want.scales);
    }
  }
}

TEST(Quantize, GivesAZeroRowScaleZero) {
  const QuantizedRows got = Quantize({0, -0.0f, 0, /**/ 448, -448, 0}, 2);
  EXPECT_THAT(got.scales, ElementsAre(0, 1));
  EXPECT_THAT(got.Floats(), ElementsAre(0, 0, 0, 448, -448, 0));
}

TEST(Quantize, KeepsZerosOfARowOfTinyNumbers) {
  const QuantizedRows got = Quantize({0, 1e-40f}, 1);
  EXPECT_EQ(got.elements[0], 0);
  EXPECT_GT(E4M3ToFloat(got.elements[1]), 0);
}

TEST(Quantize, LeavesNaNInItsPlace) {
  const QuantizedRows got = Quantize({1, NAN, -4}, 1);
  EXPECT_EQ(got.scales[0], 4.0f / 448);
  EXPECT_THAT(got.elements, ElementsAre(0x6e, 0x7f, 0xfe));  // 112, NaN, -448
}

// 2 query heads, 1 KV head.
struct Rope {
  Rope(int head_dim, std::vector<int32_t> positions, std::vector<int32_t> slots, DType kv_dtype,
       const float* k_scale = nullptr, const float* v_scale = nullptr)
      : head_dim(head_dim), positions(std::move(positions)), slots(std::move(slots)) {
    Random random(head_dim);
    qkv = RandomFloats(random, int64_t{num_tokens()} * 4 * head_dim);
    before = qkv;
    k_cache.assign(kNumSlots * head_dim * SizeOf(kv_dtype), '\xff');  // NaN in f32, bf16 and e4m3
    v_cache = k_cache;
    cpu::RopeAppend({.qkv = qkv.data(),
                     .positions = this->positions.data(),
                     .slot_mapping = this->slots.data(),
                     .k_cache = k_cache.data(),
                     .v_cache = v_cache.data(),
                     .k_scale = k_scale,
                     .v_scale = v_scale,
                     .num_tokens = num_tokens(),
                     .num_heads = 2,
                     .num_kv_heads = 1,
                     .head_dim = head_dim,
                     .block_size = kBlockSize,
                     .rope_theta = 1e4f,
                     .kv_dtype = kv_dtype});
  }

  int num_tokens() const { return static_cast<int>(positions.size()); }

  // q and k rotated in double, v as it was.
  std::vector<double> Want() const {
    std::vector<double> want(before.begin(), before.end());
    for (int t = 0; t < num_tokens(); ++t) {
      for (int h = 0; h < 3; ++h) {
        for (int i = 0; i < head_dim / 2; ++i) {
          const double angle = positions[t] * std::pow(1e4, -2.0 * i / head_dim);
          const int64_t a = (int64_t{t} * 4 + h) * head_dim + i, b = a + head_dim / 2;
          want[a] = before[a] * std::cos(angle) - before[b] * std::sin(angle);
          want[b] = before[b] * std::cos(angle) + before[a] * std::sin(angle);
        }
      }
    }
    return want;
  }

  std::vector<float> Head(int token, int head) const {
    const auto begin = qkv.begin() + (int64_t{token} * 4 + head) * head_dim;
    return {begin, begin + head_dim};
  }

  template <typename T>
  std::vector<T> Slot(const std::vector<char>& cache, int slot) const {
    const T* begin = reinterpret_cast<const T*>(cache.data()) + slot * head_dim;
    return {begin, begin + head_dim};
  }

  // The values of an e4m3 cache's slot (kernels/kv_layout.h).
  std::vector<uint8_t> ValueCodes(int slot) const {
    std::vector<uint8_t> codes;
    for (int i = 0; i < head_dim; ++i) {
      const int row = slot / kBlockSize * head_dim + i;
      codes.push_back(v_cache[row * kBlockSize + ValueColumn(slot % kBlockSize)]);
    }
    return codes;
  }

  static constexpr int kBlockSize = 16, kNumSlots = 2 * kBlockSize;
  int head_dim;
  std::vector<int32_t> positions, slots;
  std::vector<float> qkv, before;
  std::vector<char> k_cache, v_cache;
};

TEST(RopeAppend, RotatesQAndKByTheirPosition) {
  for (int head_dim : {2, 8, 80, 128}) {
    SCOPED_TRACE(head_dim);
    const Rope near(head_dim, {0, 1, 63}, {-1, -1, -1}, DType::kF32);
    EXPECT_TRUE(Close(near.qkv, near.Want(), {3, 4, head_dim}, kRopeNearTolerance));
    const Rope far(head_dim, {4000}, {-1}, DType::kF32);
    EXPECT_TRUE(Close(far.qkv, far.Want(), {1, 4, head_dim}, kRopeTolerance));
  }
}

TEST(RopeAppend, LeavesPositionZeroUnturned) {
  const Rope rope(8, {0}, {-1}, DType::kF32);
  EXPECT_EQ(rope.qkv, rope.before);
}

TEST(RopeAppend, StoresTheRotatedKAndVAtTheSlots) {
  const Rope rope(8, {5, 6, 7}, {9, 2, 4}, DType::kF32);
  for (int t = 0; t < 3; ++t) {
    EXPECT_EQ(rope.Slot<float>(rope.k_cache, rope.slots[t]), rope.Head(t, 2));
    EXPECT_EQ(rope.Slot<float>(rope.v_cache, rope.slots[t]), rope.Head(t, 3));
  }
}

TEST(RopeAppend, RoundsToABF16Cache) {
  const Rope rope(8, {5}, {13}, DType::kBF16);
  EXPECT_EQ(rope.Slot<uint16_t>(rope.k_cache, 13), ToBF16(rope.Head(0, 2)));
  EXPECT_EQ(rope.Slot<uint16_t>(rope.v_cache, 13), ToBF16(rope.Head(0, 3)));
}

TEST(RopeAppend, DividesByTheScaleAndRoundsToAnE4M3Cache) {
  const float k_scale = 0.03f, v_scale = 0.001f;
  const Rope scaled(8, {5}, {29}, DType::kF8E4M3, &k_scale, &v_scale);
  const Rope plain(8, {5}, {29}, DType::kF8E4M3);
  const auto codes = [](const std::vector<float>& head, float scale) {
    std::vector<uint8_t> codes;
    for (float x : head) codes.push_back(static_cast<uint8_t>(NearestE4M3(x / scale)));
    return codes;
  };
  EXPECT_EQ(scaled.Slot<uint8_t>(scaled.k_cache, 29), codes(scaled.Head(0, 2), k_scale));
  EXPECT_EQ(scaled.ValueCodes(29), codes(scaled.Head(0, 3), v_scale));
  EXPECT_EQ(plain.Slot<uint8_t>(plain.k_cache, 29), codes(plain.Head(0, 2), 1));
  EXPECT_EQ(plain.ValueCodes(29), codes(plain.Head(0, 3), 1));
}

TEST(RopeAppend, PutsTheValuesOfAnE4M3CacheWhereTheyAreRead) {
  std::vector<int32_t> slots(32);
  std::iota(slots.rbegin(), slots.rend(), 0);
  const Rope rope(8, slots, slots, DType::kF8E4M3);
  for (int t = 0; t < 32; ++t) {
    const std::vector<uint8_t> codes = rope.ValueCodes(slots[t]);
    for (int i = 0; i < 8; ++i) EXPECT_EQ(codes[i], FloatToE4M3(rope.Head(t, 3)[i])) << t;
  }
}

TEST(RopeAppend, WritesNoSlotButThoseNamed) {
  const Rope rope(8, {5, 6}, {-1, 3}, DType::kF32);
  for (int slot = 0; slot < Rope::kNumSlots; ++slot) {
    EXPECT_EQ(std::isnan(rope.Slot<float>(rope.k_cache, slot)[0]), slot != 3) << slot;
    EXPECT_EQ(std::isnan(rope.Slot<float>(rope.v_cache, slot)[7]), slot != 3) << slot;
  }
}

// [num_blocks = 2, num_kv_heads = 2, block_size = 2, head_dim = 2]; slot 3 is block 1, row 1.
TEST(RopeAppend, PlacesEachKvHeadInItsPartOfTheBlock) {
  std::vector<float> qkv = {0, 0, /*k*/ 1, 2, 3, 4, /*v*/ 5, 6, 7, 8};
  const int32_t position = 0, slot = 3;
  std::vector<float> k_cache(16, -1), v_cache(16, -1);
  cpu::RopeAppend({.qkv = qkv.data(),
                   .positions = &position,
                   .slot_mapping = &slot,
                   .k_cache = k_cache.data(),
                   .v_cache = v_cache.data(),
                   .num_tokens = 1,
                   .num_heads = 1,
                   .num_kv_heads = 2,
                   .head_dim = 2,
                   .block_size = 2});
  EXPECT_THAT(k_cache, ElementsAre(-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 1, 2, -1, -1, 3, 4));
  EXPECT_THAT(v_cache, ElementsAre(-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 5, 6, -1, -1, 7, 8));
}

TEST(CopyBlocks, CopiesBothCaches) {
  std::vector<int32_t> k = {10, 11, 20, 21, 30, 31, 40, 41}, v = {50, 51, 60, 61, 70, 71, 80, 81};
  const std::vector<int32_t> src = {0, 2}, dst = {3, 1};
  cpu::CopyBlocks({.k_cache = k.data(),
                   .v_cache = v.data(),
                   .src = src.data(),
                   .dst = dst.data(),
                   .num_copies = 2,
                   .block_bytes = 8});
  EXPECT_THAT(k, ElementsAre(10, 11, 30, 31, 30, 31, 10, 11));
  EXPECT_THAT(v, ElementsAre(50, 51, 70, 71, 70, 71, 50, 51));
}

}  // namespace
}  // namespace bough
