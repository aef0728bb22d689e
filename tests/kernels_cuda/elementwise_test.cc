#include "kernels/elementwise.h"

#include "tests/kernels_cuda/device_tensor.h"
#include "tests/testing/compare.h"

namespace bough {
namespace {

// Sums in another order, and expf instead of the CPU's polynomial.
constexpr Tolerance kF32Tolerance = {.abs = 1e-6, .rel = 2e-6};
// One rounding to bf16, whose neighbours lie 2^-8 apart.
constexpr Tolerance kBF16Tolerance = {.abs = 1e-6, .rel = 1.0 / 256};

Tolerance ToleranceOf(DType dtype) { return dtype == DType::kF32 ? kF32Tolerance : kBF16Tolerance; }

class Elementwise : public CudaTest, public testing::WithParamInterface<DType> {};

INSTANTIATE_TEST_SUITE_P(DTypes, Elementwise, testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& info) { return Name(info.param); });

TEST_P(Elementwise, EmbeddingCopiesRows) {
  Random random(1);
  const std::vector<int32_t> ids = {6, 0, 6, 3};
  const DeviceBytes device_ids(ids);
  for (DType table_dtype : {DType::kF32, DType::kBF16}) {
    const auto table = Rounded(RandomFloats(random, 7 * 300), table_dtype);
    const DeviceTensor device_table(table, table_dtype);
    const DeviceTensor out(std::vector<float>(4 * 300, NAN), GetParam());
    cuda::Embedding({.ids = device_ids.as<int32_t>(),
                     .table = device_table.data(),
                     .out = out.data(),
                     .num_tokens = 4,
                     .hidden_size = 300,
                     .dtype = GetParam(),
                     .table_dtype = table_dtype},
                    nullptr);
    std::vector<float> want(4 * 300);
    cpu::Embedding({.ids = ids.data(),
                    .table = table.data(),
                    .out = want.data(),
                    .num_tokens = 4,
                    .hidden_size = 300});
    EXPECT_TRUE(SameBits(out.Floats(), Rounded(want, GetParam()), {4, 300}));
  }
}

TEST_P(Elementwise, AddRmsNormAgreesWithTheCpu) {
  Random random(2);
  for (int size : {1, 31, 256, 257, 4096}) {
    SCOPED_TRACE(size);
    const auto x = Rounded(RandomFloats(random, 3 * size), GetParam());
    auto residual = Rounded(RandomFloats(random, 3 * size), GetParam());
    const auto weight = Rounded(RandomFloats(random, size), GetParam());
    const DeviceTensor x_and_out(x, GetParam()), device_residual(residual, GetParam()),
        device_weight(weight, GetParam());
    cuda::AddRmsNorm({.x = x_and_out.data(),
                      .residual = device_residual.data(),
                      .weight = device_weight.data(),
                      .out = x_and_out.data(),
                      .num_tokens = 3,
                      .hidden_size = size,
                      .dtype = GetParam()},
                     nullptr);
    // The statistics are those of the residual as stored.
    for (int i = 0; i < 3 * size; ++i) residual[i] += x[i];
    residual = Rounded(residual, GetParam());
    std::vector<float> want(3 * size);
    cpu::AddRmsNorm({.residual = residual.data(),
                     .weight = weight.data(),
                     .out = want.data(),
                     .num_tokens = 3,
                     .hidden_size = size});
    EXPECT_TRUE(SameBits(device_residual.Floats(), residual, {3, size}));
    EXPECT_TRUE(Close(x_and_out.Floats(), want, {3, size}, ToleranceOf(GetParam())));
  }
}

TEST_P(Elementwise, AddRmsNormWithoutXLeavesTheResidual) {
  const auto residual = Rounded({1, -2, 3, -4}, GetParam());
  const DeviceTensor device_residual(residual, GetParam()), weight({1, 1, 1, 1}, GetParam()),
      out({0, 0, 0, 0}, GetParam());
  cuda::AddRmsNorm({.residual = device_residual.data(),
                    .weight = weight.data(),
                    .out = out.data(),
                    .num_tokens = 1,
                    .hidden_size = 4,
                    .dtype = GetParam()},
                   nullptr);
  const float rms = std::sqrt(7.5f);
  EXPECT_TRUE(SameBits(device_residual.Floats(), residual, {4}));
  EXPECT_TRUE(Close(out.Floats(), std::vector<float>{1 / rms, -2 / rms, 3 / rms, -4 / rms}, {4},
                    {.abs = 1e-4, .rel = 1.0 / 256}));
}

// Cosines of equal angles, and one rounding after the rotation of numbers below 1.
constexpr Tolerance kRopeF32Tolerance = {.abs = 1e-6, .rel = 1e-6};
constexpr Tolerance kRopeBF16Tolerance = {.abs = 1.0 / 256, .rel = 1.0 / 256};

TEST_P(Elementwise, RopeAppendAgreesWithTheCpuNearAndFar) {
  constexpr int kHeads = 4, kKvHeads = 2, kHeadDim = 128, kBlock = 64, kTokens = 5;
  constexpr int kRow = (kHeads + 2 * kKvHeads) * kHeadDim;
  constexpr int kCache = 3 * kKvHeads * kBlock * kHeadDim;
  Random random(3);
  const auto input = Rounded(RandomFloats(random, kTokens * kRow), GetParam());
  const std::vector<int32_t> positions = {0, 1, 63, 4095, 32767}, slots = {0, 191, 64, -1, 100};
  const DeviceBytes device_positions(positions), device_slots(slots);
  for (DType kv_dtype : {DType::kF32, DType::kBF16}) {
    // 7 stands where nothing is stored.
    std::vector<float> want = input, want_k(kCache, 7), want_v(kCache, 7);
    const DeviceTensor qkv(input, GetParam()), k(want_k, kv_dtype), v(want_v, kv_dtype);
    RopeAppendParams p = {.qkv = qkv.data(),
                          .positions = device_positions.as<int32_t>(),
                          .slot_mapping = device_slots.as<int32_t>(),
                          .k_cache = k.data(),
                          .v_cache = v.data(),
                          .num_tokens = kTokens,
                          .num_heads = kHeads,
                          .num_kv_heads = kKvHeads,
                          .head_dim = kHeadDim,
                          .block_size = kBlock,
                          .dtype = GetParam(),
                          .kv_dtype = kv_dtype};
    cuda::RopeAppend(p, nullptr);
    p.qkv = want.data();
    p.positions = positions.data();
    p.slot_mapping = slots.data();
    p.k_cache = want_k.data();
    p.v_cache = want_v.data();
    p.dtype = p.kv_dtype = DType::kF32;
    cpu::RopeAppend(p);
    const bool exact = GetParam() == DType::kF32 && kv_dtype == DType::kF32;
    const Tolerance tolerance = exact ? kRopeF32Tolerance : kRopeBF16Tolerance;
    EXPECT_TRUE(Close(qkv.Floats(), want, {kTokens, kRow}, tolerance));
    EXPECT_TRUE(Close(k.Floats(), want_k, {3, kKvHeads, kBlock, kHeadDim}, tolerance));
    EXPECT_TRUE(Close(v.Floats(), want_v, {3, kKvHeads, kBlock, kHeadDim}, tolerance));
  }
}

TEST_P(Elementwise, SiluMulAgreesWithTheCpu) {
  Random random(4);
  for (int size : {1, 255, 1000}) {
    auto gate_up = Rounded(RandomFloats(random, 3 * 2 * size, 10), GetParam());
    gate_up[0] = -200;  // exp overflows: the answer is -0, not NaN
    const DeviceTensor in(gate_up, GetParam()), out(std::vector<float>(3 * size), GetParam());
    SiluMulParams p = {.gate_up = in.data(),
                       .out = out.data(),
                       .num_tokens = 3,
                       .size = size,
                       .dtype = GetParam()};
    cuda::SiluMul(p, nullptr);
    std::vector<float> want(3 * size);
    p = {.gate_up = gate_up.data(), .out = want.data(), .num_tokens = 3, .size = size};
    cpu::SiluMul(p);
    EXPECT_TRUE(Close(out.Floats(), want, {3, size}, ToleranceOf(GetParam())));
  }
}

class CopyBlocks : public CudaTest {};

TEST_F(CopyBlocks, CopiesWholeBlocksOfAnySize) {
  for (int64_t block_bytes : {48, 30, 16384}) {
    std::vector<char> k(5 * block_bytes), v(5 * block_bytes);
    for (size_t i = 0; i < k.size(); ++i) k[i] = i % 101, v[i] = i % 103;
    const DeviceBytes device_k(k), device_v(v);
    const std::vector<int32_t> src = {4, 4, 1}, dst = {0, 3, 2};
    const DeviceBytes device_src(src), device_dst(dst);
    cuda::CopyBlocks({.k_cache = device_k.as<void>(),
                      .v_cache = device_v.as<void>(),
                      .src = device_src.as<int32_t>(),
                      .dst = device_dst.as<int32_t>(),
                      .num_copies = 3,
                      .block_bytes = block_bytes},
                     nullptr);
    cpu::CopyBlocks({.k_cache = k.data(),
                     .v_cache = v.data(),
                     .src = src.data(),
                     .dst = dst.data(),
                     .num_copies = 3,
                     .block_bytes = block_bytes});
    EXPECT_EQ(device_k.Download<char>(), k);
    EXPECT_EQ(device_v.Download<char>(), v);
  }
}

TEST(ElementwiseDeathTest, RefusesADTypeByName) {
  EXPECT_DEATH(cuda::SiluMul({.num_tokens = 1, .dtype = DType::kF8E4M3}, nullptr),
               "gate_up is f8_e4m3, CUDA takes f32 or bf16");
}

}  // namespace
}  // namespace bough
