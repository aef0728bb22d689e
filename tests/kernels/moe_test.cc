#include "kernels/moe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/testing/compare.h"
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

Gated Gate(const std::vector<float>& logits, int num_experts, int top_k) {
  const int num_tokens = static_cast<int>(logits.size()) / num_experts;
  Gated gated = {std::vector<int32_t>(num_tokens * top_k, -1),
                 std::vector<float>(num_tokens * top_k, NAN)};
  cpu::TopKGate({.logits = logits.data(),
                 .expert_ids = gated.ids.data(),
                 .expert_weights = gated.weights.data(),
                 .num_tokens = num_tokens,
                 .num_experts = num_experts,
                 .top_k = top_k});
  return gated;
}

TEST(TopKGate, ChoosesTheLargestInDescendingOrder) {
  const Gated gated = Gate({1, 4, 2, 3, /**/ -1, -2, -8, -4}, 4, 2);
  EXPECT_THAT(gated.ids, ElementsAre(1, 3, 0, 1));
  const double e = std::exp(1.0);
  EXPECT_TRUE(Close(gated.weights,
                    std::vector<double>{e / (e + 1), 1 / (e + 1), e / (e + 1), 1 / (e + 1)}, {2, 2},
                    kMoeTolerance));
}

TEST(TopKGate, BreaksTiesByTheLowerExpert) {
  EXPECT_THAT(Gate({2, 5, 5, 5}, 4, 2).ids, ElementsAre(1, 2));
  EXPECT_THAT(Gate({0, 0, 0}, 3, 3).ids, ElementsAre(0, 1, 2));
}

TEST(TopKGate, GivesWeightOneToAnOnlyExpert) {
  EXPECT_THAT(Gate({3, 7}, 2, 1).weights, ElementsAre(1.0f));
  EXPECT_THAT(Gate({-50}, 1, 1).weights, ElementsAre(1.0f));
}

TEST(TopKGate, DoesNotOverflow) {
  EXPECT_THAT(Gate({3e38f, -3e38f, 3e38f}, 3, 3).weights, ElementsAre(0.5f, 0.5f, 0.0f));
}

TEST(TopKGate, GivesValidDistinctExpertsForNaNLogits) {
  Gated gated = Gate({NAN, NAN, NAN, 1}, 4, 3);
  std::sort(gated.ids.begin(), gated.ids.end());
  EXPECT_TRUE(std::adjacent_find(gated.ids.begin(), gated.ids.end()) == gated.ids.end());
  EXPECT_GE(gated.ids.front(), 0);
  EXPECT_LT(gated.ids.back(), 4);
}

TEST(TopKGate, DoesNothingWithoutTokens) { EXPECT_TRUE(Gate({}, 4, 2).ids.empty()); }

struct Routed {
  std::vector<int32_t> offsets, row_tokens, row_of_pair;
};

Routed Route(const std::vector<int32_t>& expert_ids, int top_k, int expert_begin, int expert_end) {
  Routed routed = {std::vector<int32_t>(expert_end - expert_begin + 1, -7),
                   std::vector<int32_t>(expert_ids.size(), -7),
                   std::vector<int32_t>(expert_ids.size(), -7)};
  cpu::MoeRoute({.expert_ids = expert_ids.data(),
                 .expert_offsets = routed.offsets.data(),
                 .row_tokens = routed.row_tokens.data(),
                 .row_of_pair = routed.row_of_pair.data(),
                 .num_tokens = static_cast<int>(expert_ids.size()) / top_k,
                 .top_k = top_k,
                 .expert_begin = expert_begin,
                 .expert_end = expert_end});
  return routed;
}

TEST(MoeRoute, SortsPairsByExpertAndThenByToken) {
  const Routed routed = Route({2, 0, /**/ 0, 3, /**/ 2, 3}, 2, 0, 4);
  EXPECT_THAT(routed.offsets, ElementsAre(0, 2, 2, 4, 6));
  EXPECT_THAT(routed.row_tokens, ElementsAre(0, 1, 0, 2, 1, 2));
  EXPECT_THAT(routed.row_of_pair, ElementsAre(2, 0, 1, 4, 3, 5));
}

TEST(MoeRoute, KeepsOnlyThisRanksExperts) {
  const Routed routed = Route({2, 0, /**/ 0, 3, /**/ 2, 3}, 2, 2, 4);
  EXPECT_THAT(routed.offsets, ElementsAre(0, 2, 4));
  EXPECT_THAT(std::vector(routed.row_tokens.begin(), routed.row_tokens.begin() + 4),
              ElementsAre(0, 2, 1, 2));
  EXPECT_THAT(routed.row_of_pair, ElementsAre(0, -1, -1, 2, 1, 3));
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
