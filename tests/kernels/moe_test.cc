#include "kernels/moe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/testing/compare.h"
#include "tests/testing/fp8.h"
#include "tests/testing/inputs.h"

namespace bough {
namespace {

using testing::ElementsAre;

// Softmax weights and sums of a few f32 terms below 4.
constexpr Tolerance kMoeTolerance = {.abs = 1e-6, .rel = 1e-6};

struct Gated {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

// The op at its smallest: one hidden element, whose norm is 1, so that expert e's logit is gate[e].
Gated Gate(const std::vector<float>& logits, int top_k) {
  const int num_experts = static_cast<int>(logits.size());
  Gated gated = {std::vector<int32_t>(top_k, -1), std::vector<float>(top_k, NAN)};
  float residual = 1, out = NAN;
  const float weight = 1;
  cpu::AddRmsNormGate({.norm = {.residual = &residual,
                                .weight = &weight,
                                .out = &out,
                                .num_tokens = 1,
                                .hidden_size = 1,
                                .eps = 0},
                       .gate = logits.data(),
                       .expert_ids = gated.ids.data(),
                       .expert_weights = gated.weights.data(),
                       .num_experts = num_experts,
                       .top_k = top_k});
  return gated;
}

TEST(AddRmsNormGate, ChoosesTheLargestInDescendingOrder) {
  const Gated gated = Gate({1, 4, 2, 3}, 2);
  EXPECT_THAT(gated.ids, ElementsAre(1, 3));
  const double e = std::exp(1.0);
  EXPECT_TRUE(
      Close(gated.weights, std::vector<double>{e / (e + 1), 1 / (e + 1)}, {2}, kMoeTolerance));
}

TEST(AddRmsNormGate, BreaksTiesByTheLowerExpert) {
  EXPECT_THAT(Gate({2, 5, 5, 5}, 2).ids, ElementsAre(1, 2));
  EXPECT_THAT(Gate({0, 0, 0}, 3).ids, ElementsAre(0, 1, 2));
}

TEST(AddRmsNormGate, GivesWeightOneToAnOnlyExpert) {
  EXPECT_THAT(Gate({3, 7}, 1).weights, ElementsAre(1.0f));
  EXPECT_THAT(Gate({-50}, 1).weights, ElementsAre(1.0f));
}

TEST(AddRmsNormGate, DoesNotOverflow) {
  EXPECT_THAT(Gate({3e38f, -3e38f, 3e38f}, 3).weights, ElementsAre(0.5f, 0.5f, 0.0f));
}

TEST(AddRmsNormGate, GivesValidDistinctExpertsForNaNLogits) {
  Gated gated = Gate({NAN, NAN, NAN, 1}, 3);
  std::sort(gated.ids.begin(), gated.ids.end());
  EXPECT_TRUE(std::adjacent_find(gated.ids.begin(), gated.ids.end()) == gated.ids.end());
  EXPECT_GE(gated.ids.front(), 0);
  EXPECT_LT(gated.ids.back(), 4);
}

// Tensors of an AddRmsNormGate with a combine in front of the norm.
struct Block {
  Block(int num_tokens, int hidden_size, DType gate_dtype)
      : num_tokens(num_tokens), hidden_size(hidden_size), gate_dtype(gate_dtype) {
    Random random(num_tokens * 100 + hidden_size);
    rows = RandomFloats(random, num_tokens * kTopK * hidden_size);
    before = residual = RandomFloats(random, num_tokens * hidden_size);
    weight = RandomFloats(random, hidden_size);
    gate = RandomFloats(random, kNumExperts * hidden_size);
    if (gate_dtype == DType::kBF16) gate = RoundToBF16(gate);
    gate_bits = ToBF16(gate);
    expert_weights = RandomFloats(random, num_tokens * kTopK);
    for (int i = 0; i < num_tokens * kTopK; ++i) row_of_pair.push_back(i % 5 == 3 ? -1 : i);
    std::shuffle(row_of_pair.begin(), row_of_pair.end(), random);
  }

  AddRmsNormParams Norm(void* out) {
    return {.x = rows.data(),
            .residual = residual.data(),
            .weight = weight.data(),
            .out = out,
            .num_tokens = num_tokens,
            .hidden_size = hidden_size,
            .row_of_pair = row_of_pair.data(),
            .expert_weights = expert_weights.data(),
            .top_k = kTopK};
  }

  Gated RunGate(AddRmsNormParams norm) {
    Gated gated = {std::vector<int32_t>(num_tokens * kTopK, -1),
                   std::vector<float>(num_tokens * kTopK, NAN)};
    const bool bf16 = gate_dtype == DType::kBF16;
    cpu::AddRmsNormGate({.norm = norm,
                         .gate = bf16 ? static_cast<const void*>(gate_bits.data()) : gate.data(),
                         .expert_ids = gated.ids.data(),
                         .expert_weights = gated.weights.data(),
                         .num_experts = kNumExperts,
                         .top_k = kTopK,
                         .gate_dtype = gate_dtype});
    return gated;
  }

  static constexpr int kNumExperts = 5, kTopK = 2;
  int num_tokens, hidden_size;
  DType gate_dtype;
  std::vector<float> rows, before, residual, weight, gate, expert_weights;
  std::vector<uint16_t> gate_bits;
  std::vector<int32_t> row_of_pair;
};

// Each fused op is, to the bit, the ops that it fuses.
TEST(AddRmsNorm, WithPairsIsMoeCombineAndThenAddRmsNorm) {
  for (const auto& [num_tokens, hidden] : {std::pair{0, 8}, {1, 1}, {3, 9}, {7, 512}}) {
    SCOPED_TRACE(testing::Message() << num_tokens << "x" << hidden);
    Block fused(num_tokens, hidden, DType::kF32), apart = fused;
    std::vector<float> out(num_tokens * hidden, NAN), want(num_tokens * hidden, NAN);
    cpu::AddRmsNorm(fused.Norm(out.data()));
    cpu::MoeCombine({.rows = apart.rows.data(),
                     .row_of_pair = apart.row_of_pair.data(),
                     .expert_weights = apart.expert_weights.data(),
                     .out = want.data(),
                     .num_tokens = num_tokens,
                     .top_k = Block::kTopK,
                     .hidden_size = hidden});
    cpu::AddRmsNorm({.x = want.data(),
                     .residual = apart.residual.data(),
                     .weight = apart.weight.data(),
                     .out = want.data(),
                     .num_tokens = num_tokens,
                     .hidden_size = hidden});
    EXPECT_TRUE(SameBits(fused.residual, apart.residual, {num_tokens, hidden}));
    EXPECT_TRUE(SameBits(out, want, {num_tokens, hidden}));
  }
}

TEST(AddRmsNormGate, RoutesByTheNormedRowBeforeItIsQuantized) {
  for (DType gate_dtype : {DType::kF32, DType::kBF16}) {
    for (const auto& [num_tokens, hidden] : {std::pair{0, 8}, {1, 7}, {6, 100}}) {
      SCOPED_TRACE(testing::Message() << num_tokens << "x" << hidden);
      Block block(num_tokens, hidden, gate_dtype);
      std::vector<float> out(num_tokens * hidden, NAN);
      const Gated gated = block.RunGate(block.Norm(out.data()));
      for (int t = 0; t < num_tokens; ++t) {
        std::vector<std::pair<double, int>> logits;  // negative, so that sorting puts ties right
        for (int e = 0; e < Block::kNumExperts; ++e) {
          double logit = 0;
          for (int i = 0; i < hidden; ++i) {
            logit += double{out[t * hidden + i]} * block.gate[e * hidden + i];
          }
          logits.emplace_back(-logit, e);
        }
        std::sort(logits.begin(), logits.end());
        EXPECT_EQ(gated.ids[2 * t], logits[0].second);
        EXPECT_EQ(gated.ids[2 * t + 1], logits[1].second);
        EXPECT_NEAR(gated.weights[2 * t], 1 / (1 + std::exp(logits[0].first - logits[1].first)),
                    1e-5);
      }

      block.residual = block.before;
      QuantizedRows quantized = {std::vector<uint8_t>(out.size()), std::vector<float>(num_tokens)};
      AddRmsNormParams norm = block.Norm(quantized.elements.data());
      norm.out_dtype = DType::kF8E4M3;
      norm.out_scale = quantized.scales.data();
      const Gated again = block.RunGate(norm);
      EXPECT_EQ(again.ids, gated.ids);
      EXPECT_EQ(again.weights, gated.weights);
      EXPECT_EQ(quantized.elements, QuantizeRows(out, num_tokens).elements);
    }
  }
}

struct Routed {
  std::vector<int32_t> offsets, row_of_pair;
  std::vector<int64_t> rows;  // token * 10 and one more element each; -7 = not written
  std::vector<float> scales;  // token / 2
};

Routed Route(const std::vector<int32_t>& expert_ids, int top_k, int expert_begin, int expert_end) {
  const int num_tokens = static_cast<int>(expert_ids.size()) / top_k;
  Routed routed = {std::vector<int32_t>(expert_end - expert_begin + 1, -7),
                   std::vector<int32_t>(expert_ids.size(), -7),
                   std::vector<int64_t>(2 * expert_ids.size(), -7),
                   std::vector<float>(expert_ids.size(), -7)};
  std::vector<int64_t> x;
  std::vector<float> x_scale;
  for (int t = 0; t < num_tokens; ++t) {
    x.insert(x.end(), {t * 10, t * 10 + 1});
    x_scale.push_back(t / 2.0f);
  }
  cpu::MoeRoute({.expert_ids = expert_ids.data(),
                 .x = x.data(),
                 .x_scale = x_scale.data(),
                 .expert_offsets = routed.offsets.data(),
                 .row_of_pair = routed.row_of_pair.data(),
                 .rows = routed.rows.data(),
                 .row_scale = routed.scales.data(),
                 .num_tokens = num_tokens,
                 .top_k = top_k,
                 .expert_begin = expert_begin,
                 .expert_end = expert_end,
                 .row_bytes = 16});
  return routed;
}

TEST(MoeRoute, SortsPairsByExpertAndThenByToken) {
  const Routed routed = Route({2, 0, /**/ 0, 3, /**/ 2, 3}, 2, 0, 4);
  EXPECT_THAT(routed.offsets, ElementsAre(0, 2, 2, 4, 6));
  EXPECT_THAT(routed.row_of_pair, ElementsAre(2, 0, 1, 4, 3, 5));
  EXPECT_THAT(routed.rows, ElementsAre(0, 1, 10, 11, 0, 1, 20, 21, 10, 11, 20, 21));
  EXPECT_THAT(routed.scales, ElementsAre(0, 0.5f, 0, 1, 0.5f, 1));
}

TEST(MoeRoute, KeepsOnlyThisRanksExperts) {
  const Routed routed = Route({2, 0, /**/ 0, 3, /**/ 2, 3}, 2, 2, 4);
  EXPECT_THAT(routed.offsets, ElementsAre(0, 2, 4));
  EXPECT_THAT(routed.row_of_pair, ElementsAre(0, -1, -1, 2, 1, 3));
  EXPECT_THAT(routed.rows, ElementsAre(0, 1, 20, 21, 10, 11, 20, 21, -7, -7, -7, -7));
  EXPECT_THAT(routed.scales, ElementsAre(0, 1, 0.5f, 1, -7, -7));
}

TEST(MoeRoute, TakesNoTokensAndNoExperts) {
  EXPECT_THAT(Route({}, 2, 0, 3).offsets, ElementsAre(0, 0, 0, 0));
  const Routed none = Route({1, 0}, 2, 2, 2);
  EXPECT_THAT(none.offsets, ElementsAre(0));
  EXPECT_THAT(none.row_of_pair, ElementsAre(-1, -1));
}

std::vector<float> Combine(const std::vector<float>& rows, const std::vector<int32_t>& row_of_pair,
                           const std::vector<float>& weights, int top_k, int hidden_size) {
  const int num_tokens = static_cast<int>(row_of_pair.size()) / top_k;
  std::vector<float> out(num_tokens * hidden_size, NAN);
  cpu::MoeCombine({.rows = rows.data(),
                   .row_of_pair = row_of_pair.data(),
                   .expert_weights = weights.data(),
                   .out = out.data(),
                   .num_tokens = num_tokens,
                   .top_k = top_k,
                   .hidden_size = hidden_size});
  return out;
}

TEST(MoeCombine, AddsTheWeightedRows) {
  EXPECT_THAT(Combine({1, 2, /**/ 10, 20}, {1, 0, /**/ 0, -1}, {0.5f, 2, /**/ 3, 9}, 2, 2),
              ElementsAre(7, 14, 3, 6));
}

TEST(MoeCombine, GivesZeroWhereAllPairsAreAnotherRanks) {
  EXPECT_THAT(Combine({}, {-1, -1}, {NAN, NAN}, 2, 3), ElementsAre(0, 0, 0));
}

TEST(MoeCombine, MatchesTheFormulaForEachShape) {
  Random random(1);
  for (const auto& [num_tokens, top_k, hidden] :
       {std::tuple{0, 2, 8}, {1, 1, 1}, {3, 2, 7}, {5, 3, 8}, {4, 2, 9}, {200, 2, 512}}) {
    SCOPED_TRACE(testing::Message() << num_tokens << "x" << top_k << "x" << hidden);
    const int num_pairs = num_tokens * top_k;
    const std::vector<float> rows = RandomFloats(random, int64_t{num_pairs} * hidden);
    const std::vector<float> weights = RandomFloats(random, num_pairs);
    std::vector<int32_t> row_of_pair(num_pairs);
    std::iota(row_of_pair.begin(), row_of_pair.end(), 0);
    std::shuffle(row_of_pair.begin(), row_of_pair.end(), random);
    std::vector<double> want(int64_t{num_tokens} * hidden, 0.0);
    for (int pair = 0; pair < num_pairs; ++pair) {
      for (int i = 0; i < hidden; ++i) {
        want[pair / top_k * hidden + i] +=
            double{weights[pair]} * rows[int64_t{row_of_pair[pair]} * hidden + i];
      }
    }
    EXPECT_TRUE(Close(Combine(rows, row_of_pair, weights, top_k, hidden), want,
                      {num_tokens, hidden}, kMoeTolerance));
  }
}

}  // namespace
}  // namespace bough
