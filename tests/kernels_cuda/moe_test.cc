#include "kernels/moe.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "tests/kernels_cuda/device_tensor.h"
#include "tests/testing/compare.h"

namespace bough {
namespace {

constexpr Tolerance kF32Tolerance = {.abs = 1e-6, .rel = 1e-6};
constexpr Tolerance kBF16Tolerance = {.abs = 1e-6, .rel = 1.0 / 256};

class Moe : public CudaTest {};

struct Routed {
  std::vector<int32_t> offsets, row_of_pair;
  std::vector<uint8_t> rows;
  std::vector<float> scales;
};

std::vector<int32_t> RandomChoices(Random& random, int num_tokens, int num_experts, int top_k) {
  std::vector<int32_t> ids, all(num_experts);
  std::iota(all.begin(), all.end(), 0);
  for (int t = 0; t < num_tokens; ++t) {
    std::shuffle(all.begin(), all.end(), random);
    ids.insert(ids.end(), all.begin(), all.begin() + top_k);
  }
  return ids;
}

// Rows past the last kept, and their scales, stay as they were.
void ExpectRouteAgrees(const std::vector<int32_t>& ids, int top_k, int begin, int end,
                       int row_bytes) {
  const int num_pairs = static_cast<int>(ids.size()), num_tokens = num_pairs / top_k;
  Random random(num_pairs);
  std::vector<uint8_t> x(int64_t{num_tokens} * row_bytes);
  for (uint8_t& byte : x) byte = static_cast<uint8_t>(random());
  const std::vector<float> x_scale = RandomFloats(random, num_tokens);
  Routed want = {std::vector<int32_t>(end - begin + 1, -7), std::vector<int32_t>(num_pairs, -7),
                 std::vector<uint8_t>(int64_t{num_pairs} * row_bytes, 0x55),
                 std::vector<float>(num_pairs, -7)};
  const DeviceBytes device_ids(ids), device_x(x), device_x_scale(x_scale), offsets(want.offsets),
      row_of_pair(want.row_of_pair), rows(want.rows), row_scale(want.scales);
  MoeRouteParams p = {.expert_ids = device_ids.as<int32_t>(),
                      .x = device_x.as<void>(),
                      .x_scale = device_x_scale.as<float>(),
                      .expert_offsets = offsets.as<int32_t>(),
                      .row_of_pair = row_of_pair.as<int32_t>(),
                      .rows = rows.as<void>(),
                      .row_scale = row_scale.as<float>(),
                      .num_tokens = num_tokens,
                      .top_k = top_k,
                      .expert_begin = begin,
                      .expert_end = end,
                      .row_bytes = row_bytes};
  cuda::MoeRoute(p, nullptr);
  p.expert_ids = ids.data();
  p.x = x.data();
  p.x_scale = x_scale.data();
  p.expert_offsets = want.offsets.data();
  p.row_of_pair = want.row_of_pair.data();
  p.rows = want.rows.data();
  p.row_scale = want.scales.data();
  cpu::MoeRoute(p);
  EXPECT_EQ(offsets.Download<int32_t>(), want.offsets);
  EXPECT_TRUE(row_of_pair.Download<int32_t>() == want.row_of_pair);
  EXPECT_TRUE(rows.Download<uint8_t>() == want.rows);
  EXPECT_TRUE(SameBits(row_scale.Download<float>(), want.scales, {num_pairs}));
}

// 1024 pairs are the last that take the launch for few, 1025 tokens the other one.
TEST_F(Moe, RouteAgreesWithTheCpuForEveryShareOfTheExperts) {
  Random random(2);
  for (int num_tokens : {0, 1, 2, 33, 512, 513, 1025, 20000}) {
    const std::vector<int32_t> ids = RandomChoices(random, num_tokens, 7, 2);
    for (const auto& [begin, end] : {std::pair{0, 7}, {0, 3}, {3, 7}, {6, 7}, {4, 4}}) {
      SCOPED_TRACE(testing::Message() << num_tokens << " tokens, [" << begin << ", " << end << ")");
      ExpectRouteAgrees(ids, 2, begin, end, num_tokens > 10000 ? 16 : 48);
    }
  }
}

TEST_F(Moe, RouteTakesManyExpertsManyChoicesAndLongRows) {
  Random random(3);
  ExpectRouteAgrees(RandomChoices(random, 40, 64, 8), 8, 0, 64, 8192);
  ExpectRouteAgrees(RandomChoices(random, 700, 64, 8), 8, 0, 64, 4096);
  ExpectRouteAgrees(RandomChoices(random, 700, 64, 8), 8, 32, 64, 16);
  ExpectRouteAgrees(std::vector<int32_t>(3000, 5), 1, 0, 8, 32);  // all to one expert
}

TEST_F(Moe, CombineAgreesWithTheCpu) {
  Random random(3);
  constexpr int kTokens = 3, kTopK = 2, kHidden = 328;
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
