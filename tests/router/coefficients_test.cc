#include "router/coefficients.h"

#include <cmath>
#include <random>

#include "gtest/gtest.h"

namespace bough::router {
namespace {

constexpr PrefillCost kTruth = {
    .per_prompt = 0.02, .per_token = 1e-4, .per_pair = 2e-9, .per_token_row = 3e-6};

// Prompts of a service: mostly short, some long, some cached, measured with 5 % of noise.
void Feed(PrefillFit* fit, int group, const PrefillCost& truth, int num_prompts,
          double slowness = 1) {
  std::mt19937 rng(group + 1);
  std::uniform_real_distribution<double> u(0, 1);
  std::normal_distribution<double> noise(1, 0.05);
  for (int i = 0; i < num_prompts; ++i) {
    const double uncached = 64 + 30000 * std::pow(u(rng), 3);
    const double cached = u(rng) < 0.5 ? 0 : 60000 * u(rng);
    const double rows = static_cast<int>(20 * u(rng));
    fit->Add(group, uncached, cached, rows,
             slowness * truth.Seconds(uncached, cached, rows) * noise(rng));
  }
}

TEST(PrefillFit, PredictsPromptsUnlikeThoseItSaw) {
  PrefillFit fit(1);
  Feed(&fit, 0, kTruth, 1000);
  for (double uncached : {100, 5000, 80000}) {
    for (double cached : {0, 40000}) {
      const double truth = kTruth.Seconds(uncached, cached, 8);
      EXPECT_NEAR(fit.cost(0).Seconds(uncached, cached, 8), truth, 0.05 * truth)
          << uncached << " after " << cached;
    }
  }
}

TEST(PrefillFit, SaysNothingBeforeItHasSeenEnough) {
  PrefillFit fit(1);
  Feed(&fit, 0, kTruth, PrefillFit::kMinPrompts - 1);
  EXPECT_FALSE(fit.cost(0).fitted());
  Feed(&fit, 0, kTruth, 1);
  EXPECT_TRUE(fit.cost(0).fitted());
}

TEST(PrefillFit, FollowsAChange) {
  PrefillFit fit(1);
  Feed(&fit, 0, kTruth, 2000);
  Feed(&fit, 0, kTruth, 4000, /*slowness=*/2);
  const double truth = 2 * kTruth.Seconds(5000, 0, 4);
  EXPECT_NEAR(fit.cost(0).Seconds(5000, 0, 4), truth, 0.1 * truth);
}

TEST(PrefillFit, TellsAFastGroupFromASlowOne) {
  PrefillFit fit(2);
  for (int i = 0; i < 20; ++i) {
    Feed(&fit, 0, kTruth, 50);
    Feed(&fit, 1, kTruth, 50, /*slowness=*/3);
  }
  const double ratio = fit.cost(1).Seconds(5000, 0, 4) / fit.cost(0).Seconds(5000, 0, 4);
  EXPECT_NEAR(ratio, 3, 0.5);
}

// A group that measured one slow first prompt would otherwise never be chosen again, and so never
// correct itself.
TEST(PrefillFit, OneOddPromptDoesNotMakeAGroupLookBroken) {
  PrefillFit fit(2);
  Feed(&fit, 0, kTruth, 200);
  fit.Add(1, 64, 0, 0, 50 * kTruth.Seconds(64, 0, 0));
  EXPECT_LT(fit.cost(1).Seconds(5000, 0, 4), 1.3 * fit.cost(0).Seconds(5000, 0, 4));
}

TEST(PrefillFit, AGroupThatStartsAnewIsOrdinaryAgain) {
  PrefillFit fit(2);
  for (int i = 0; i < 20; ++i) {
    Feed(&fit, 0, kTruth, 50);
    Feed(&fit, 1, kTruth, 50, /*slowness=*/3);
  }
  const double slow = fit.cost(1).Seconds(5000, 0, 4);
  fit.Forget(1);
  const double ordinary = fit.cost(1).Seconds(5000, 0, 4);
  EXPECT_LT(ordinary, 0.8 * slow);
  fit.Forget(0);
  EXPECT_DOUBLE_EQ(fit.cost(0).Seconds(5000, 0, 4), ordinary);
}

TEST(BusyShare, TendsToTheShareOfBusyTime) {
  BusyShare share;
  for (int i = 0; i < 10000; ++i) share.Add(i % 4 == 0, 0.1);
  EXPECT_NEAR(share.value(), 0.25, 0.01);
  share.Add(false, 1000);
  EXPECT_NEAR(share.value(), 0, 1e-6);
}

TEST(MeanAnswer, FollowsWhatAnswersTake) {
  MeanAnswer mean;
  EXPECT_EQ(mean.value(), 0);
  mean.Add(100);
  EXPECT_DOUBLE_EQ(mean.value(), 100);
  for (int i = 0; i < 2000; ++i) mean.Add(500);
  EXPECT_NEAR(mean.value(), 500, 1);
}

}  // namespace
}  // namespace bough::router
