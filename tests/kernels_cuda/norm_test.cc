// AddRmsNorm and AddRmsNormGate on CUDA against their CPU twins. The CPU adds in f32: for bf16 the
// residual as stored on the GPU, checked by itself, is what the twin's norm starts from.
#include <algorithm>
#include <tuple>
#include <utility>

#include "kernels/moe.h"
#include "tests/kernels_cuda/device_tensor.h"
#include "tests/kernels_cuda/f8_rows.h"
#include "tests/testing/compare.h"

namespace bough {
namespace {

// Sums of up to 8192 squares in another order.
constexpr Tolerance kNormF32Tolerance = {.abs = 1e-6, .rel = 4e-6};
// One rounding to bf16, whose neighbours lie 2^-8 apart.
constexpr Tolerance kBF16Tolerance = {.abs = 1e-6, .rel = 1.0 / 256};
constexpr int kTopK = 2;

enum class Added { kNothing, kX, kExpertRows };

struct Inputs {
  Inputs(int num_tokens, int hidden, DType dtype, Added added)
      : num_tokens(num_tokens), hidden(hidden), dtype(dtype), added(added) {
    Random random(num_tokens * 31 + hidden);
    const int64_t size = int64_t{num_tokens} * hidden;
    x = Rounded(RandomFloats(random, added == Added::kExpertRows ? size * kTopK : size), dtype);
    residual = Rounded(RandomFloats(random, size, 2), dtype);
    weight = RandomFloats(random, hidden);
    expert_weights = RandomFloats(random, num_tokens * kTopK);
    for (int i = 0; i < num_tokens * kTopK; ++i) row_of_pair.push_back(i % 7 == 5 ? -1 : i);
    std::shuffle(row_of_pair.begin(), row_of_pair.end(), random);
  }

  // The CPU's residual after the addition, as it is stored in dtype.
  std::vector<float> Sum() const {
    std::vector<float> sum = residual, out(residual.size());
    AddRmsNormParams p = Params();
    p.residual = sum.data();
    p.out = out.data();
    cpu::AddRmsNorm(p);
    return Rounded(sum, dtype);
  }

  AddRmsNormParams Params() const {
    AddRmsNormParams p = {.x = added == Added::kNothing ? nullptr : x.data(),
                          .weight = weight.data(),
                          .num_tokens = num_tokens,
                          .hidden_size = hidden};
    if (added == Added::kExpertRows) {
      p.row_of_pair = row_of_pair.data();
      p.expert_weights = expert_weights.data();
      p.top_k = kTopK;
    }
    return p;
  }

  int num_tokens, hidden;
  DType dtype;
  Added added;
  std::vector<float> x, residual, weight, expert_weights;
  std::vector<int32_t> row_of_pair;
};

// The inputs on the GPU, with an output in dtype and one in f8_e4m3.
struct OnGpu {
  explicit OnGpu(const Inputs& in)
      : in(in),
        x(in.x, in.dtype),
        residual(in.residual, in.dtype),
        out(std::vector<float>(in.residual.size(), NAN), in.dtype),
        weight(in.weight),
        row_of_pair(in.row_of_pair),
        expert_weights(in.expert_weights),
        f8_out(in.num_tokens, in.hidden) {}

  AddRmsNormParams Params(bool f8) const {
    AddRmsNormParams p = in.Params();
    if (p.x != nullptr) p.x = x.data();
    p.residual = residual.data();
    p.weight = weight.as<float>();
    p.dtype = p.out_dtype = in.dtype;
    p.out = out.data();
    if (f8) {
      p.out = f8_out.elements();
      p.out_scale = f8_out.scales();
      p.out_dtype = DType::kF8E4M3;
    }
    if (p.row_of_pair != nullptr) {
      p.row_of_pair = row_of_pair.as<int32_t>();
      p.expert_weights = expert_weights.as<float>();
    }
    return p;
  }

  const Inputs& in;
  DeviceTensor x, residual, out;
  DeviceBytes weight, row_of_pair, expert_weights;
  DeviceF8Rows f8_out;
};

// The CPU's norm of `residual`, which it does not change.
struct Normed {
  Normed(std::vector<float> residual, const Inputs& in)
      : out(residual.size()), elements(residual.size()), scales(in.num_tokens) {
    AddRmsNormParams p = in.Params();
    p.x = nullptr;
    p.residual = residual.data();
    p.out = out.data();
    cpu::AddRmsNorm(p);
    p.out = elements.data();
    p.out_scale = scales.data();
    p.out_dtype = DType::kF8E4M3;
    cpu::AddRmsNorm(p);
  }

  std::vector<float> out;
  std::vector<uint8_t> elements;
  std::vector<float> scales;
};

Tolerance ToleranceOf(DType dtype) {
  return dtype == DType::kF32 ? kNormF32Tolerance : kBF16Tolerance;
}

class Norm : public CudaTest, public testing::WithParamInterface<DType> {};

INSTANTIATE_TEST_SUITE_P(DTypes, Norm, testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& info) { return Name(info.param); });

const std::pair<int, int> kShapes[] = {{0, 64}, {1, 4096}, {2, 72},   {33, 1032},
                                       {3, 8},  {5, 4104}, {2, 8192}, {1025, 64}};

TEST_P(Norm, AddRmsNormAgreesWithTheCpuForEachShapeAndAddition) {
  for (const auto& [num_tokens, hidden] : kShapes) {
    for (Added added : {Added::kNothing, Added::kX, Added::kExpertRows}) {
      for (bool f8 : {false, true}) {
        SCOPED_TRACE(testing::Message() << num_tokens << "x" << hidden << " added "
                                        << static_cast<int>(added) << (f8 ? " to f8" : ""));
        const Inputs in(num_tokens, hidden, GetParam(), added);
        const OnGpu gpu(in);
        cuda::AddRmsNorm(gpu.Params(f8), nullptr);
        const std::vector<float> residual = gpu.residual.Floats();
        EXPECT_TRUE(Close(residual, in.Sum(), {num_tokens, hidden}, ToleranceOf(GetParam())));
        const Normed want(residual, in);
        if (f8) {
          EXPECT_TRUE(CloseF8Rows(gpu.f8_out, want.elements, want.scales));
        } else {
          EXPECT_TRUE(
              Close(gpu.out.Floats(), want.out, {num_tokens, hidden}, ToleranceOf(GetParam())));
        }
      }
    }
  }
}

TEST_P(Norm, MayWriteOverX) {
  const Inputs in(5, 264, GetParam(), Added::kX);
  const OnGpu gpu(in), apart(in);
  AddRmsNormParams p = gpu.Params(false);
  p.out = gpu.x.data();
  cuda::AddRmsNorm(p, nullptr);
  cuda::AddRmsNorm(apart.Params(false), nullptr);
  EXPECT_TRUE(SameBits(gpu.x.Floats(), apart.out.Floats(), {5, 264}));
}

struct Gated {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Gated GateOnGpu(const AddRmsNormParams& norm, const DeviceTensor& gate, DType gate_dtype,
                int num_experts, int top_k) {
  const DeviceBytes ids(std::vector<int32_t>(norm.num_tokens * top_k, -7)),
      weights(std::vector<float>(norm.num_tokens * top_k, NAN));
  cuda::AddRmsNormGate({.norm = norm,
                        .gate = gate.data(),
                        .expert_ids = ids.as<int32_t>(),
                        .expert_weights = weights.as<float>(),
                        .num_experts = num_experts,
                        .top_k = top_k,
                        .gate_dtype = gate_dtype},
                       nullptr);
  return {ids.Download<int32_t>(), weights.Download<float>()};
}

// Logits of a token in double, from the normed row as the router sees it.
std::vector<double> Logits(const float* row, const std::vector<float>& gate, int hidden) {
  std::vector<double> logits;
  for (size_t e = 0; e < gate.size() / hidden; ++e) {
    double sum = 0;
    for (int i = 0; i < hidden; ++i) sum += double{row[i]} * gate[e * hidden + i];
    logits.push_back(sum);
  }
  return logits;
}

// The j-th choice is as large as the j-th largest logit, up to the error of an f32 sum and, for
// bf16, of elements of the row that round the other way; its weight is the softmax.
void ExpectChoosesTheLargest(const std::vector<double>& logits, const int32_t* ids,
                             const float* weights, int top_k, double error) {
  std::vector<double> sorted = logits;
  std::sort(sorted.rbegin(), sorted.rend());
  double sum = 0;
  for (int j = 0; j < top_k; ++j) sum += std::exp(sorted[j] - sorted[0]);
  for (int j = 0; j < top_k; ++j) {
    ASSERT_TRUE(0 <= ids[j] && ids[j] < static_cast<int>(logits.size())) << ids[j];
    ASSERT_NEAR(logits[ids[j]], sorted[j], error);
    ASSERT_EQ(std::count(ids, ids + top_k, ids[j]), 1) << "chosen twice";
    ASSERT_NEAR(weights[j], std::exp(sorted[j] - sorted[0]) / sum, error);
  }
}

// 8 experts: their weights wait in registers; 9 and 64: they are read for each token; 200 tokens:
// more than there are thread blocks; 265 and 1025: four at a time.
TEST_P(Norm, GateChoosesTheCpusExpertsAndNormsAsAddRmsNorm) {
  for (const auto& [num_tokens, hidden, num_experts, top_k] : {std::tuple{0, 64, 8, 2},
                                                               {1, 4096, 8, 2},
                                                               {33, 1032, 8, 2},
                                                               {2, 72, 3, 3},
                                                               {5, 64, 1, 1},
                                                               {7, 4104, 8, 2},
                                                               {9, 512, 9, 4},
                                                               {4, 1024, 64, 8},
                                                               {1025, 64, 8, 2}}) {
    for (DType gate_dtype : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(testing::Message() << num_tokens << "x" << hidden << ", " << top_k << " of "
                                      << num_experts << " " << Name(gate_dtype));
      const Inputs in(num_tokens, hidden, GetParam(), Added::kX);
      Random random(hidden);
      const auto gate = Rounded(RandomFloats(random, num_experts * hidden, 0.1f), gate_dtype);
      const DeviceTensor device_gate(gate, gate_dtype);
      const OnGpu gpu(in), f8(in), plain(in);
      const Gated got = GateOnGpu(gpu.Params(false), device_gate, gate_dtype, num_experts, top_k);
      const Gated got_f8 = GateOnGpu(f8.Params(true), device_gate, gate_dtype, num_experts, top_k);
      cuda::AddRmsNorm(plain.Params(false), nullptr);
      EXPECT_TRUE(SameBits(gpu.residual.Floats(), plain.residual.Floats(), {num_tokens, hidden}));
      EXPECT_TRUE(SameBits(gpu.out.Floats(), plain.out.Floats(), {num_tokens, hidden}));
      EXPECT_EQ(got.ids, got_f8.ids);
      EXPECT_EQ(got.weights, got_f8.weights);
      const Normed want(f8.residual.Floats(), in);
      EXPECT_TRUE(CloseF8Rows(f8.f8_out, want.elements, want.scales));
      const std::vector<float> row = gpu.out.Floats();
      for (int t = 0; t < num_tokens; ++t) {
        ExpectChoosesTheLargest(Logits(&row[t * hidden], gate, hidden), &got.ids[t * top_k],
                                &got.weights[t * top_k], top_k, 1e-4);
      }
    }
  }
}

// One element whose norm is 1 and seven that are 0: expert e's logit is exactly gate[e, 0].
class Gate : public CudaTest {};

TEST_F(Gate, BreaksTiesByTheLowerExpertAndSurvivesNaN) {
  const auto choose = [](const std::vector<float>& logits, int top_k) {
    const int num_experts = static_cast<int>(logits.size());
    std::vector<float> gate(num_experts * 8, 0);
    for (int e = 0; e < num_experts; ++e) gate[e * 8] = logits[e];
    const DeviceTensor device_gate(gate, DType::kF32), out(std::vector<float>(8), DType::kF32),
        residual({1, 0, 0, 0, 0, 0, 0, 0}, DType::kF32);
    const DeviceBytes weight(std::vector<float>{std::sqrt(0.125f), 1, 1, 1, 1, 1, 1, 1});
    return GateOnGpu({.residual = residual.data(),
                      .weight = weight.as<float>(),
                      .out = out.data(),
                      .num_tokens = 1,
                      .hidden_size = 8,
                      .eps = 0},
                     device_gate, DType::kF32, num_experts, top_k);
  };
  EXPECT_EQ(choose({2, 5, 5, 5}, 2).ids, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(choose({-0.0f, 0, 0}, 3).ids, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(choose({-50}, 1).weights, (std::vector<float>{1}));
  EXPECT_EQ(choose({1e38f, -1e38f, 1e38f}, 3).weights, (std::vector<float>{0.5f, 0.5f, 0}));
  EXPECT_EQ(choose({NAN, NAN, NAN, 1}, 3).ids, (std::vector<int32_t>{3, 0, 1}));
}

}  // namespace
}  // namespace bough
