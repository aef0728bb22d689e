#include "kernels/sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "tests/testing/compare.h"
#include "tests/testing/inputs.h"

namespace bough {
namespace {

using testing::ElementsAre;

// An f32 rounding of a double.
constexpr Tolerance kLogprobTolerance = {.abs = 1e-6, .rel = 1e-6};

// One vocabulary's logits, and the flat arrays that rows point into.
struct Sampler {
  explicit Sampler(std::vector<float> logits) : logits(std::move(logits)) {}

  int vocab_size() const { return static_cast<int>(logits.size()); }

  std::vector<int32_t> Run(const std::vector<SamplingRow>& rows) {
    std::vector<int32_t> tokens(rows.size(), -1);
    logprobs.assign(rows.size(), NAN);
    top_ids.assign(rows.size() * kMaxTop, -1);
    top_logprobs.assign(rows.size() * kMaxTop, NAN);
    cpu::Sample({.logits = logits.data(),
                 .rows = rows.data(),
                 .bias_ids = bias_ids.data(),
                 .bias_values = bias_values.data(),
                 .seen_ids = seen_ids.data(),
                 .seen_counts = seen_counts.data(),
                 .banned_ids = banned_ids.data(),
                 .tokens = tokens.data(),
                 .logprobs = logprobs.data(),
                 .top_ids = top_ids.data(),
                 .top_logprobs = top_logprobs.data(),
                 .num_rows = static_cast<int>(rows.size()),
                 .vocab_size = vocab_size(),
                 .max_top = kMaxTop});
    return tokens;
  }

  // `row` at positions 0, 1, ...
  std::vector<int32_t> Draw(SamplingRow row, int num_draws) {
    std::vector<SamplingRow> rows(num_draws, row);
    for (int i = 0; i < num_draws; ++i) rows[i].position = i;
    return Run(rows);
  }

  std::set<int32_t> Support(SamplingRow row) {
    const std::vector<int32_t> tokens = Draw(row, 2000);
    return {tokens.begin(), tokens.end()};
  }

  static constexpr int kMaxTop = 8;
  std::vector<float> logits;
  std::vector<int32_t> bias_ids, seen_ids, seen_counts, banned_ids;
  std::vector<float> bias_values, logprobs, top_logprobs;
  std::vector<int32_t> top_ids;
};

std::vector<float> Logs(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

TEST(SampleGreedy, TakesTheLargestLogit) {
  EXPECT_THAT(Sampler({1, 3, -2, 2}).Run({{.temperature = 0}}), ElementsAre(1));
}

TEST(SampleGreedy, BreaksTiesByTheLowerId) {
  EXPECT_THAT(Sampler({1, 3, 3, 3}).Run({{.temperature = 0}}), ElementsAre(1));
}

TEST(SampleGreedy, NeverTakesANaN) {
  EXPECT_THAT(Sampler({NAN, 3, NAN, 4, NAN}).Run({{.temperature = 0}}), ElementsAre(3));
}

// Pearson's chi-square of the draws against the probabilities.
double ChiSquare(const std::vector<int32_t>& tokens, const std::vector<double>& probabilities) {
  std::vector<double> counts(probabilities.size(), 0);
  for (int32_t t : tokens) ++counts[t];
  double sum = 0;
  for (size_t v = 0; v < counts.size(); ++v) {
    const double expected = probabilities[v] * static_cast<double>(tokens.size());
    sum += (counts[v] - expected) * (counts[v] - expected) / expected;
  }
  return sum;
}

// 7 degrees of freedom: a right sampler exceeds 24.3 once in 1000 seeds; the seeds are fixed.
constexpr double kChiSquareLimit = 24.3;

TEST(SampleDraw, FollowsTheProbabilities) {
  const std::vector<double> p = {0.3, 0.02, 0.1, 0.25, 0.05, 0.08, 0.15, 0.05};
  Sampler sampler(Logs(p));
  EXPECT_LT(ChiSquare(sampler.Draw({.seed = 1}, 50000), p), kChiSquareLimit);
}

TEST(SampleDraw, FollowsTheProbabilitiesOverChoicesAndSeeds) {
  const std::vector<double> p = {0.3, 0.02, 0.1, 0.25, 0.05, 0.08, 0.15, 0.05};
  Sampler sampler(Logs(p));
  std::vector<SamplingRow> by_choice(50000), by_seed(50000);
  for (int i = 0; i < 50000; ++i) {
    by_choice[i] = {.seed = 7, .choice = i};
    by_seed[i] = {.seed = static_cast<uint64_t>(i)};
  }
  EXPECT_LT(ChiSquare(sampler.Run(by_choice), p), kChiSquareLimit);
  EXPECT_LT(ChiSquare(sampler.Run(by_seed), p), kChiSquareLimit);
}

TEST(SampleDraw, DividesLogitsByTheTemperature) {
  const std::vector<double> p = {0.4, 0.1, 0.05, 0.15, 0.05, 0.05, 0.1, 0.1};
  for (double temperature : {0.5, 2.0}) {
    SCOPED_TRACE(temperature);
    std::vector<double> tempered;
    double sum = 0;
    for (double x : p) sum += tempered.emplace_back(std::pow(x, 1 / temperature));
    for (double& x : tempered) x /= sum;
    Sampler sampler(Logs(p));
    const SamplingRow row = {.temperature = static_cast<float>(temperature), .seed = 3};
    EXPECT_LT(ChiSquare(sampler.Draw(row, 50000), tempered), kChiSquareLimit);
  }
}

TEST(SampleDraw, IsGreedyAtATinyTemperature) {
  EXPECT_THAT(Sampler({1, 30, 29.99f, 2}).Support({.temperature = 1e-30f}), ElementsAre(1));
}

TEST(SampleDraw, TakesAnInfiniteLogit) {
  EXPECT_THAT(Sampler({1, INFINITY, 2, INFINITY, NAN}).Support({}), ElementsAre(1, 3));
}

TEST(SampleDraw, RepeatsForTheSameSeedChoiceAndPosition) {
  Random random(1);
  Sampler sampler(RandomFloats(random, 1000));
  const std::vector<int32_t> draws = sampler.Draw({.seed = 5, .choice = 2}, 50);
  EXPECT_EQ(sampler.Draw({.seed = 5, .choice = 2}, 50), draws);
  EXPECT_NE(sampler.Draw({.seed = 5, .choice = 3}, 50), draws);
  EXPECT_NE(sampler.Draw({.seed = 6, .choice = 2}, 50), draws);
}

TEST(SampleDraw, DoesNotDependOnTheOtherRows) {
  Random random(2);
  Sampler sampler(RandomFloats(random, 5000));
  std::vector<SamplingRow> rows;
  for (int i = 0; i < 20; ++i) rows.push_back({.logits_row = i % 5, .seed = 9, .choice = i});
  sampler.logits.resize(5000);
  const auto run = [&](const std::vector<SamplingRow>& r) {
    std::vector<int32_t> tokens(r.size());
    cpu::Sample({.logits = sampler.logits.data(),
                 .rows = r.data(),
                 .tokens = tokens.data(),
                 .num_rows = static_cast<int>(r.size()),
                 .vocab_size = 1000});
    return tokens;
  };
  const std::vector<int32_t> batch = run(rows);
  for (int i = 0; i < 20; ++i) EXPECT_THAT(run({rows[i]}), ElementsAre(batch[i])) << i;
}

TEST(SampleTopK, KeepsTheKLikeliestAndBreaksTiesByTheLowerId) {
  Sampler sampler({1, 2, 1, 1.5f, 1, -1});
  EXPECT_THAT(sampler.Support({.top_k = 1}), ElementsAre(1));
  EXPECT_THAT(sampler.Support({.top_k = 2}), ElementsAre(1, 3));
  EXPECT_THAT(sampler.Support({.top_k = 3}), ElementsAre(0, 1, 3));
  EXPECT_THAT(sampler.Support({.top_k = 4}), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(sampler.Support({.top_k = 0}), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(sampler.Support({.top_k = 100}), ElementsAre(0, 1, 2, 3, 4, 5));
}

TEST(SampleTopP, KeepsTheFewestLikeliestThatReachP) {
  Sampler sampler(Logs({0.1, 0.4, 0.2, 0.3}));
  EXPECT_THAT(sampler.Support({.top_p = 1e-6f}), ElementsAre(1));
  EXPECT_THAT(sampler.Support({.top_p = 0.39f}), ElementsAre(1));
  EXPECT_THAT(sampler.Support({.top_p = 0.41f}), ElementsAre(1, 3));
  EXPECT_THAT(sampler.Support({.top_p = 0.71f}), ElementsAre(1, 2, 3));
  EXPECT_THAT(sampler.Support({.top_p = 0.91f}), ElementsAre(0, 1, 2, 3));
}

TEST(SampleTopP, ReachesFarIntoAFlatVocabulary) {
  Sampler sampler(std::vector<float>(1000, 0.5f));  // ties: the lowest ids are kept
  EXPECT_THAT(*sampler.Support({.top_p = 0.5005f}).rbegin(),
              testing::AllOf(testing::Le(500), testing::Gt(450)));
}

TEST(SampleTopP, CountsOnlyWhatTopKLeft) {
  Sampler sampler(Logs({0.1, 0.4, 0.2, 0.3}));
  // Of {0.4, 0.3}, the first is 4/7 = 0.571 of the mass.
  EXPECT_THAT(sampler.Support({.top_p = 0.57f, .top_k = 2}), ElementsAre(1));
  EXPECT_THAT(sampler.Support({.top_p = 0.58f, .top_k = 2}), ElementsAre(1, 3));
}

TEST(SampleMinP, KeepsThoseNearTheLikeliest) {
  Sampler sampler(Logs({0.1, 0.4, 0.2, 0.3}));
  EXPECT_THAT(sampler.Support({.min_p = 1}), ElementsAre(1));
  EXPECT_THAT(sampler.Support({.min_p = 0.7f}), ElementsAre(1, 3));
  EXPECT_THAT(sampler.Support({.min_p = 0.49f}), ElementsAre(1, 2, 3));
  EXPECT_THAT(sampler.Support({.min_p = 0.2f}), ElementsAre(0, 1, 2, 3));
}

TEST(SamplePenalties, RepetitionDividesPositiveAndMultipliesNegativeLogits) {
  Sampler sampler({4, 3, -1, -2});
  sampler.seen_ids = {0, 2};
  sampler.seen_counts = {0, 0};  // in the prompt only
  SamplingRow row = {.temperature = 0, .repetition_penalty = 1.3f, .seen_end = 2};
  EXPECT_THAT(sampler.Run({row}), ElementsAre(0)) << "4 / 1.3 > 3";
  row.repetition_penalty = 1.4f;
  EXPECT_THAT(sampler.Run({row}), ElementsAre(1)) << "4 / 1.4 < 3";
  sampler.logits = {-1, -9, -1, -2};
  row.repetition_penalty = 2.1f;
  EXPECT_THAT(sampler.Run({row}), ElementsAre(3)) << "-1 * 2.1 < -2";
}

TEST(SamplePenalties, PresenceAndFrequencyCountTheAnswerAlone) {
  Sampler sampler({4, 3.5f, 0});
  sampler.seen_ids = {0};
  sampler.seen_counts = {0};
  SamplingRow row = {
      .temperature = 0, .presence_penalty = 1, .frequency_penalty = 1, .seen_end = 1};
  EXPECT_THAT(sampler.Run({row}), ElementsAre(0)) << "the prompt's tokens are not penalised";
  sampler.seen_counts = {3};
  EXPECT_THAT(sampler.Run({row}), ElementsAre(1));
  row = {.temperature = 0, .presence_penalty = 0.4f, .seen_end = 1};
  EXPECT_THAT(sampler.Run({row}), ElementsAre(0)) << "4 - 0.4, once for three occurrences";
  row = {.temperature = 0, .frequency_penalty = 0.2f, .seen_end = 1};
  EXPECT_THAT(sampler.Run({row}), ElementsAre(1)) << "4 - 3 * 0.2";
}

TEST(SampleBias, IsAddedBeforeThePenalties) {
  Sampler sampler({-1, 0.5f});
  sampler.bias_ids = {0};
  sampler.bias_values = {3};
  sampler.seen_ids = {0};
  sampler.seen_counts = {0};
  EXPECT_THAT(sampler.Run({{.temperature = 0, .bias_end = 1}}), ElementsAre(0)) << "-1 + 3 > 0.5";
  EXPECT_THAT(
      sampler.Run({{.temperature = 0, .repetition_penalty = 5, .bias_end = 1, .seen_end = 1}}),
      ElementsAre(1))
      << "(-1 + 3) / 5 < 0.5";
}

TEST(SampleBanned, TokensAreNeverChosen) {
  Sampler sampler({5, 1, 4, 0});
  sampler.banned_ids = {0, 2};
  sampler.bias_ids = {0};
  sampler.bias_values = {100};
  EXPECT_THAT(sampler.Run({{.temperature = 0, .bias_end = 1, .banned_end = 2}}), ElementsAre(1));
  EXPECT_THAT(sampler.Support({.banned_end = 2}), ElementsAre(1, 3));
  EXPECT_THAT(sampler.Support({.banned_end = 1}), ElementsAre(1, 2, 3));
}

TEST(SampleBanned, EverythingLeavesTheLowestId) {
  Sampler sampler({5, 1});
  sampler.banned_ids = {0, 1};
  EXPECT_THAT(sampler.Run({{.banned_end = 2}, {.temperature = 0, .banned_end = 2}}),
              ElementsAre(0, 0));
}

TEST(SampleRows, UseOnlyTheirOwnRanges) {
  Sampler sampler({5, 4, 3});
  sampler.banned_ids = {0, 0, 1};
  EXPECT_THAT(sampler.Run({{.temperature = 0},
                           {.temperature = 0, .banned_begin = 0, .banned_end = 1},
                           {.temperature = 0, .banned_begin = 1, .banned_end = 3}}),
              ElementsAre(0, 1, 2));
}

TEST(SampleLogprobs, AreTheLogSoftmaxOfTheRawLogits) {
  Sampler sampler(Logs({0.1, 0.4, 0.2, 0.3}));
  sampler.banned_ids = {1};
  const std::vector<int32_t> tokens =
      sampler.Run({{.temperature = 0, .num_logprobs = 0, .banned_end = 1}});
  EXPECT_THAT(tokens, ElementsAre(3));
  EXPECT_TRUE(Close(sampler.logprobs, std::vector{std::log(0.3)}, {1}, kLogprobTolerance));
  EXPECT_EQ(sampler.top_ids[0], -1) << "num_logprobs 0 writes no top";
}

TEST(SampleLogprobs, TopIdsDescendAndBreakTiesByTheLowerId) {
  Sampler sampler(Logs({0.1, 0.2, 0.4, 0.2, 0.1}));
  sampler.Run({{.num_logprobs = 4}});
  sampler.top_ids.resize(5);
  EXPECT_THAT(sampler.top_ids, ElementsAre(2, 1, 3, 0, -1));
  sampler.top_logprobs.resize(4);
  EXPECT_TRUE(Close(sampler.top_logprobs,
                    std::vector{std::log(0.4), std::log(0.2), std::log(0.2), std::log(0.1)}, {4},
                    kLogprobTolerance));
}

TEST(SampleLogprobs, DoNotOverflow) {
  Sampler sampler({1e30f, 1e30f, -1e30f});
  sampler.Run({{.temperature = 0, .num_logprobs = 0}});
  EXPECT_NEAR(sampler.logprobs[0], std::log(0.5), 1e-6);
}

TEST(SampleLogprobs, AreNotWrittenUnlessAskedFor) {
  Sampler sampler({1, 2});
  sampler.Run({{.temperature = 0}});
  EXPECT_TRUE(std::isnan(sampler.logprobs[0]));
}

TEST(Sample, DoesNothingWithoutRows) { cpu::Sample({}); }

}  // namespace
}  // namespace bough
