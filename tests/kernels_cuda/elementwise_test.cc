#include "kernels/elementwise.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "kernels/kv_layout.h"
#include "tests/kernels_cuda/device_tensor.h"
#include "tests/kernels_cuda/f8_rows.h"
#include "tests/testing/compare.h"

namespace bough {
namespace {

class Elementwise : public CudaTest, public testing::WithParamInterface<DType> {};

INSTANTIATE_TEST_SUITE_P(DTypes, Elementwise, testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& info) { return Name(info.param); });

TEST_P(Elementwise, EmbeddingCopiesRowsOfGivenAndSampledIds) {
  Random random(1);
  const std::vector<int32_t> ids = {6, -2, 6, 3, -1}, sampled = {5, 0};
  const DeviceBytes device_ids(ids), device_sampled(sampled);
  for (int hidden : {8, 72, 4096}) {
    for (DType table_dtype : {DType::kF32, DType::kBF16}) {
      const auto table = Rounded(RandomFloats(random, 7 * hidden), table_dtype);
      const DeviceTensor device_table(table, table_dtype);
      const DeviceTensor out(std::vector<float>(5 * hidden, NAN), GetParam());
      cuda::Embedding({.ids = device_ids.as<int32_t>(),
                       .sampled = device_sampled.as<int32_t>(),
                       .table = device_table.data(),
                       .out = out.data(),
                       .num_tokens = 5,
                       .hidden_size = hidden,
                       .dtype = GetParam(),
                       .table_dtype = table_dtype},
                      nullptr);
      std::vector<float> want(5 * hidden);
      cpu::Embedding({.ids = ids.data(),
                      .sampled = sampled.data(),
                      .table = table.data(),
                      .out = want.data(),
                      .num_tokens = 5,
                      .hidden_size = hidden});
      EXPECT_TRUE(SameBits(out.Floats(), Rounded(want, GetParam()), {5, hidden}));
    }
  }
}

// Cosines of equal angles, and one rounding after the rotation of numbers below 1.
constexpr Tolerance kRopeF32Tolerance = {.abs = 1e-6, .rel = 1e-6};
constexpr Tolerance kRopeBF16Tolerance = {.abs = 1.0 / 256, .rel = 1.0 / 256};
// e4m3 of numbers below 1 / 0.05 = 20, whose neighbours lie up to 2 apart.
constexpr Tolerance kRopeF8Tolerance = {.abs = 0.02, .rel = 1.0 / 8};

struct RopeShape {
  int num_tokens, num_heads, num_kv_heads, head_dim;
};

// head_dim 72 takes the path without vectors; 1025 tokens are more than the grid has blocks.
const RopeShape kRopeShapes[] = {{0, 4, 2, 128}, {1, 32, 8, 128},  {2, 2, 1, 72},
                                 {33, 4, 4, 64}, {1025, 4, 2, 32}, {5, 40, 40, 128}};

// Where tokens are stored: backwards, but for every fifth; as two prompts' chunks lie, of which the
// first begins within 16 rows; or each in a block of its own, as a decode step's.
enum class RopeSlots { kBackwards, kInOrder, kApart };

std::vector<int32_t> Slots(RopeSlots kind, int num_tokens, int num_slots, int block_size) {
  std::vector<int32_t> slots;
  for (int t = 0; t < num_tokens; ++t) {
    const int second = num_tokens / 2;
    if (kind == RopeSlots::kBackwards) {
      slots.push_back(t % 5 == 4 ? -1 : num_slots - 1 - t);
    } else if (kind == RopeSlots::kInOrder) {
      slots.push_back(t < second ? num_slots / 2 + 5 + t : t - second);
    } else {
      slots.push_back(t * block_size + t * 7 % block_size);
    }
  }
  if (kind == RopeSlots::kInOrder && num_tokens > 100) slots[70] = -1;
  return slots;
}

// [num_heads of all blocks, block_size, head_dim] as an e4m3 V cache has it (kernels/kv_layout.h).
std::vector<float> TransposedValues(const std::vector<float>& v, int block_size, int head_dim) {
  std::vector<float> out(v.size());
  for (size_t i = 0; i < v.size(); ++i) {
    const size_t head = i / head_dim / block_size, d = i % head_dim;
    const int row = static_cast<int>(i / head_dim % block_size);
    out[(head * head_dim + d) * block_size + ValueColumn(row)] = v[i];
  }
  return out;
}

void ExpectRopeAgrees(const RopeShape& shape, DType dtype, DType kv_dtype, int block_size,
                      RopeSlots kind) {
  const auto [num_tokens, num_heads, num_kv_heads, head_dim] = shape;
  const int row = (num_heads + 2 * num_kv_heads) * head_dim;
  const int num_blocks = (kind == RopeSlots::kApart ? num_tokens : num_tokens / block_size) + 3,
            cache = num_blocks * num_kv_heads * block_size * head_dim;
  Random random(3);
  const auto input = Rounded(RandomFloats(random, num_tokens * row), dtype);
  const std::vector<int32_t> slots = Slots(kind, num_tokens, num_blocks * block_size, block_size);
  std::vector<int32_t> positions;
  for (int t = 0; t < num_tokens; ++t) {
    positions.push_back(t < 2 ? t * 32767 : RandomInt(random, 0, 32767));
  }
  std::vector<float> k_scale, v_scale;
  for (int h = 0; h < num_kv_heads; ++h) k_scale.push_back(0.05f + h), v_scale.push_back(0.07f);
  // 7 stands where nothing is stored.
  std::vector<float> want = input, want_k(cache, 7), want_v(cache, 7);
  const DeviceBytes device_positions(positions), device_slots(slots), device_k_scale(k_scale),
      device_v_scale(v_scale);
  const DeviceTensor qkv(input, dtype), k(want_k, kv_dtype), v(want_v, kv_dtype);
  const bool scaled = kv_dtype == DType::kF8E4M3;
  RopeAppendParams p = {.qkv = qkv.data(),
                        .positions = device_positions.as<int32_t>(),
                        .slot_mapping = device_slots.as<int32_t>(),
                        .k_cache = k.data(),
                        .v_cache = v.data(),
                        .k_scale = scaled ? device_k_scale.as<float>() : nullptr,
                        .v_scale = scaled ? device_v_scale.as<float>() : nullptr,
                        .num_tokens = num_tokens,
                        .num_heads = num_heads,
                        .num_kv_heads = num_kv_heads,
                        .head_dim = head_dim,
                        .block_size = block_size,
                        .dtype = dtype,
                        .kv_dtype = kv_dtype};
  cuda::RopeAppend(p, nullptr);
  p.qkv = want.data();
  p.positions = positions.data();
  p.slot_mapping = slots.data();
  p.k_cache = want_k.data();
  p.v_cache = want_v.data();
  p.k_scale = scaled ? k_scale.data() : nullptr;
  p.v_scale = scaled ? v_scale.data() : nullptr;
  p.dtype = p.kv_dtype = DType::kF32;
  cpu::RopeAppend(p);
  if (scaled) want_v = TransposedValues(want_v, block_size, head_dim);
  const bool exact = dtype == DType::kF32 && kv_dtype == DType::kF32;
  const Tolerance tolerance = dtype == DType::kF32 ? kRopeF32Tolerance : kRopeBF16Tolerance;
  const Tolerance kv_tolerance = scaled  ? kRopeF8Tolerance
                                 : exact ? kRopeF32Tolerance
                                         : kRopeBF16Tolerance;
  EXPECT_TRUE(Close(qkv.Floats(), want, {num_tokens, row}, tolerance));
  const std::vector<int> cache_shape = {num_blocks, num_kv_heads, block_size, head_dim};
  EXPECT_TRUE(Close(k.Floats(), want_k, cache_shape, kv_tolerance));
  EXPECT_TRUE(Close(v.Floats(), want_v, cache_shape, kv_tolerance));
}

TEST_P(Elementwise, RopeAppendAgreesWithTheCpuForEachShapeAndCache) {
  for (const RopeShape& shape : kRopeShapes) {
    for (DType kv_dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
      SCOPED_TRACE(testing::Message() << shape.num_tokens << " tokens, head_dim " << shape.head_dim
                                      << ", cache " << Name(kv_dtype));
      for (RopeSlots kind : {RopeSlots::kBackwards, RopeSlots::kInOrder, RopeSlots::kApart}) {
        for (int block_size : {16, 64}) {
          ExpectRopeAgrees(shape, GetParam(), kv_dtype, block_size, kind);
        }
      }
    }
  }
}

// Approximate exponential and quotient against the CPU's polynomial.
constexpr Tolerance kSiluF32Tolerance = {.abs = 1e-6, .rel = 4e-6};
// One rounding to bf16, whose neighbours lie 2^-8 apart.
constexpr Tolerance kSiluBF16Tolerance = {.abs = 1e-6, .rel = 1.0 / 256};

// All rows are 7 before; those past num_rows still are afterwards.
void ExpectSiluAgrees(int num_tokens, int size, int num_rows, DType dtype) {
  Random random(size);
  auto gate_up = Rounded(RandomFloats(random, int64_t{num_tokens} * 2 * size, 10), dtype);
  if (num_tokens > 0) gate_up[0] = -200;  // exp overflows: the answer is -0, not NaN
  const std::vector<int32_t> count = {num_rows};
  const DeviceBytes device_count(count);
  const DeviceTensor in(gate_up, dtype);
  const DeviceTensor out(std::vector<float>(int64_t{num_tokens} * size, 7), dtype);
  const DeviceF8Rows f8_out(num_tokens, size);
  SiluMulParams p = {.gate_up = in.data(),
                     .out = out.data(),
                     .num_rows = device_count.as<int32_t>(),
                     .num_tokens = num_tokens,
                     .size = size,
                     .dtype = dtype,
                     .out_dtype = dtype};
  cuda::SiluMul(p, nullptr);
  p.out = f8_out.elements();
  p.out_scale = f8_out.scales();
  p.out_dtype = DType::kF8E4M3;
  cuda::SiluMul(p, nullptr);

  std::vector<float> want(int64_t{num_tokens} * size, 7), scales(num_tokens, -7);
  std::vector<uint8_t> elements(want.size(), 0x55);
  p = {.gate_up = gate_up.data(),
       .out = want.data(),
       .num_rows = count.data(),
       .num_tokens = num_tokens,
       .size = size};
  cpu::SiluMul(p);
  p.out = elements.data();
  p.out_scale = scales.data();
  p.out_dtype = DType::kF8E4M3;
  cpu::SiluMul(p);
  EXPECT_TRUE(Close(out.Floats(), want, {num_tokens, size},
                    dtype == DType::kF32 ? kSiluF32Tolerance : kSiluBF16Tolerance));
  EXPECT_TRUE(CloseF8Rows(f8_out, elements, scales));
}

// A vector a thread, up to eight; TP shards of Mixtral's 14336; a last vector alone in its warp.
TEST_P(Elementwise, SiluMulAgreesWithTheCpuForEachShape) {
  for (const auto& [num_tokens, size, num_rows] : {std::tuple{0, 8, 0},
                                                   {1, 8, 1},
                                                   {2, 3584, 2},
                                                   {33, 264, 17},
                                                   {3, 14336, 2},
                                                   {2, 7176, 2},
                                                   {2, 28672, 1},
                                                   {1025, 64, 1000}}) {
    SCOPED_TRACE(testing::Message() << num_rows << " of " << num_tokens << " x " << size);
    ExpectSiluAgrees(num_tokens, size, num_rows, GetParam());
  }
}

// The same row in, the same bits out: nothing is rounded before.
TEST_P(Elementwise, QuantizeGivesTheCpusBits) {
  Random random(5);
  for (const auto& [num_rows, size] : {std::pair{0, 8},
                                       {1, 8},
                                       {2, 4096},
                                       {33, 264},
                                       {3, 14336},
                                       {2, 28672},
                                       {2, 32768},
                                       {1025, 64}}) {
    SCOPED_TRACE(testing::Message() << num_rows << " x " << size);
    auto x = Rounded(RandomFloats(random, int64_t{num_rows} * size, 3), GetParam());
    if (num_rows > 1) std::fill(x.begin(), x.begin() + size, -0.0f);
    if (num_rows > 2) x[2 * size + 5] = NAN, x[2 * size] = 1e-30f;
    const DeviceTensor device_x(x, GetParam());
    const DeviceF8Rows got(num_rows, size);
    QuantizeParams p = {.x = device_x.data(),
                        .out = got.elements(),
                        .scale = got.scales(),
                        .num_rows = num_rows,
                        .size = size,
                        .dtype = GetParam()};
    cuda::Quantize(p, nullptr);
    x = Rounded(x, GetParam());
    std::vector<uint8_t> elements(x.size());
    std::vector<float> scales(num_rows);
    cpu::Quantize({.x = x.data(),
                   .out = elements.data(),
                   .scale = scales.data(),
                   .num_rows = num_rows,
                   .size = size});
    EXPECT_TRUE(got.Elements() == elements);
    EXPECT_TRUE(SameBits(got.Scales(), scales, {num_rows}));
  }
}

// Scales are chosen by sums of squared errors: where two come out equal but for rounding, the twins
// may differ, and are equally good.
TEST_P(Elementwise, QuantizeWeightsIsAsGoodAsTheCpu) {
  Random random(6);
  for (const auto& [num_rows, size] :
       {std::pair{0, 8}, {1, 8}, {3, 4096}, {33, 264}, {3, 14336}, {257, 64}}) {
    SCOPED_TRACE(testing::Message() << num_rows << " x " << size);
    auto x = Rounded(RandomFloats(random, int64_t{num_rows} * size, 3), GetParam());
    if (num_rows > 1) std::fill(x.begin(), x.begin() + size, -0.0f);
    const DeviceTensor device_x(x, GetParam());
    const DeviceF8Rows got(num_rows, size);
    cuda::QuantizeWeights({.x = device_x.data(),
                           .out = got.elements(),
                           .scale = got.scales(),
                           .num_rows = num_rows,
                           .size = size,
                           .dtype = GetParam()},
                          nullptr);
    std::vector<uint8_t> want(x.size());
    std::vector<float> want_scales(num_rows);
    cpu::QuantizeWeights({.x = x.data(),
                          .out = want.data(),
                          .scale = want_scales.data(),
                          .num_rows = num_rows,
                          .size = size});
    const std::vector<uint8_t> elements = got.Elements();
    const std::vector<float> scales = got.Scales();
    for (int r = 0; r < num_rows; ++r) {
      double error = 0, want_error = 0;
      for (int64_t i = int64_t{r} * size; i < int64_t{r + 1} * size; ++i) {
        error += std::pow(double{E4M3ToFloat(elements[i])} * scales[r] - x[i], 2);
        want_error += std::pow(double{E4M3ToFloat(want[i])} * want_scales[r] - x[i], 2);
      }
      EXPECT_NEAR(error, want_error, 1e-4 * want_error) << "row " << r;
    }
  }
}

class CopyBlocks : public CudaTest {};

TEST_F(CopyBlocks, CopiesWholeBlocksOfAnySize) {
  for (int64_t block_bytes : {48, 30, 16384, 100000}) {
    std::vector<char> k(5 * block_bytes), v(5 * block_bytes);
    for (size_t i = 0; i < k.size(); ++i) k[i] = i % 101, v[i] = i % 103;
    const DeviceBytes device_k(k), device_v(v);
    const std::vector<int32_t> src = {4, 4, 1}, dst = {0, 3, 2};
    const DeviceBytes device_src(src), device_dst(dst);
    CopyBlocksParams p = {.k_cache = device_k.as<void>(),
                          .v_cache = device_v.as<void>(),
                          .src = device_src.as<int32_t>(),
                          .dst = device_dst.as<int32_t>(),
                          .num_copies = 3,
                          .block_bytes = block_bytes};
    cuda::CopyBlocks(p, nullptr);
    p.k_cache = k.data();
    p.v_cache = v.data();
    p.src = src.data();
    p.dst = dst.data();
    cpu::CopyBlocks(p);
    EXPECT_EQ(device_k.Download<char>(), k);
    EXPECT_EQ(device_v.Download<char>(), v);
  }
}

TEST(ElementwiseDeathTest, RefusesADTypeByName) {
  EXPECT_DEATH(cuda::SiluMul({.num_tokens = 1, .size = 8, .dtype = DType::kF8E4M3}, nullptr),
               "gate_up is f8_e4m3, CUDA takes f32 or bf16");
}

TEST(ElementwiseDeathTest, RefusesRowsThatAreNotWholeVectors) {
  EXPECT_DEATH(cuda::SiluMul({.num_tokens = 1, .size = 12}, nullptr),
               "rows have a multiple of 8 elements");
}

}  // namespace
}  // namespace bough
