#include "kernels/moe.h"

#include "tests/kernels_cuda/device_tensor.h"
#include "tests/testing/compare.h"

namespace bough {
namespace {

// expf against std::exp.
constexpr Tolerance kF32Tolerance = {.abs = 1e-6, .rel = 1e-6};
constexpr Tolerance kBF16Tolerance = {.abs = 1e-6, .rel = 1.0 / 256};

class Moe : public CudaTest {};

TEST_F(Moe, GateAgreesWithTheCpuIncludingTies) {
  Random random(1);
  for (const auto& [num_experts, top_k] : {std::pair{1, 1}, {3, 2}, {8, 2}, {60, 8}}) {
    constexpr int kTokens = 130;
    std::vector<float> logits = RandomFloats(random, kTokens * num_experts, 4);
    for (size_t i = 0; i < logits.size() / 2; ++i) logits[i] = std::round(logits[i]);  // ties
    std::vector<int32_t> ids(kTokens * top_k);
    std::vector<float> weights(kTokens * top_k);
    const DeviceBytes device_logits(logits), device_ids(ids), device_weights(weights);
    cuda::TopKGate({.logits = device_logits.as<float>(),
                    .expert_ids = device_ids.as<int32_t>(),
                    .expert_weights = device_weights.as<float>(),
                    .num_tokens = kTokens,
                    .num_experts = num_experts,
                    .top_k = top_k},
                   nullptr);
    cpu::TopKGate({.logits = logits.data(),
                   .expert_ids = ids.data(),
                   .expert_weights = weights.data(),
                   .num_tokens = kTokens,
                   .num_experts = num_experts,
                   .top_k = top_k});
    EXPECT_EQ(device_ids.Download<int32_t>(), ids);
    EXPECT_TRUE(Close(device_weights.Download<float>(), weights, {kTokens, top_k}, kF32Tolerance));
  }
}

struct Routed {
  std::vector<int32_t> offsets, row_tokens, row_of_pair;
};

TEST_F(Moe, RouteAgreesWithTheCpuForEveryShareOfTheExperts) {
  Random random(2);
  constexpr int kTopK = 2, kExperts = 7;
  for (int num_tokens : {0, 1, 33, 1000}) {
    std::vector<int32_t> ids;
    for (int i = 0; i < num_tokens; ++i) {
      ids.push_back(RandomInt(random, 0, kExperts - 1));
      ids.push_back((ids.back() + RandomInt(random, 1, kExperts - 1)) % kExperts);
    }
    for (const auto& [begin, end] : {std::pair{0, 7}, {0, 3}, {3, 7}, {6, 7}, {4, 4}}) {
      SCOPED_TRACE(testing::Message() << num_tokens << " tokens, [" << begin << ", " << end << ")");
      Routed want = {std::vector<int32_t>(end - begin + 1), std::vector<int32_t>(ids.size()),
                     std::vector<int32_t>(ids.size())};
      const DeviceBytes device_ids(ids), offsets(want.offsets), row_tokens(want.row_tokens),
          row_of_pair(want.row_of_pair);
      MoeRouteParams p = {.expert_ids = device_ids.as<int32_t>(),
                          .expert_offsets = offsets.as<int32_t>(),
                          .row_tokens = row_tokens.as<int32_t>(),
                          .row_of_pair = row_of_pair.as<int32_t>(),
                          .num_tokens = num_tokens,
                          .top_k = kTopK,
                          .expert_begin = begin,
                          .expert_end = end};
      cuda::MoeRoute(p, nullptr);
      p.expert_ids = ids.data();
      p.expert_offsets = want.offsets.data();
      p.row_tokens = want.row_tokens.data();
      p.row_of_pair = want.row_of_pair.data();
      cpu::MoeRoute(p);
      EXPECT_EQ(offsets.Download<int32_t>(), want.offsets);
      EXPECT_EQ(row_of_pair.Download<int32_t>(), want.row_of_pair);
      auto got_tokens = row_tokens.Download<int32_t>();
      got_tokens.resize(want.offsets.back());
      want.row_tokens.resize(want.offsets.back());
      EXPECT_EQ(got_tokens, want.row_tokens);
    }
  }
}

TEST_F(Moe, CombineAgreesWithTheCpu) {
  Random random(3);
  constexpr int kTokens = 3, kTopK = 2, kHidden = 300;
  const std::vector<int32_t> row_of_pair = {2, 0, -1, 1, -1, -1};
  const std::vector<float> weights = {0.25, 0.75, 0.5, 0.5, 0.1f, 0.9f};
  const DeviceBytes device_rows(row_of_pair), device_weights(weights);
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    const auto rows = Rounded(RandomFloats(random, 3 * kHidden), dtype);
    std::vector<float> want(kTokens * kHidden, NAN);
    const DeviceTensor device_in(rows, dtype), out(want, dtype);
    MoeCombineParams p = {.rows = device_in.data(),
                          .row_of_pair = device_rows.as<int32_t>(),
                          .expert_weights = device_weights.as<float>(),
                          .out = out.data(),
                          .num_tokens = kTokens,
                          .top_k = kTopK,
                          .hidden_size = kHidden,
                          .dtype = dtype};
    cuda::MoeCombine(p, nullptr);
    p.rows = rows.data();
    p.row_of_pair = row_of_pair.data();
    p.expert_weights = weights.data();
    p.out = want.data();
    p.dtype = DType::kF32;
    cpu::MoeCombine(p);
    const Tolerance tolerance = dtype == DType::kF32 ? kF32Tolerance : kBF16Tolerance;
    EXPECT_TRUE(Close(out.Floats(), want, {kTokens, kHidden}, tolerance));
  }
}

}  // namespace
}  // namespace bough
