#include "worker/step_time.h"

#include <gtest/gtest.h>

#include <random>

namespace bough {
namespace {

TEST(StepTime, FindsTheThreeCostsThroughNoise) {
  std::mt19937 rng(1);
  std::uniform_int_distribution<int> tokens(1, 2048), blocks(0, 5000);
  std::normal_distribution<double> noise(1, 0.05);
  StepTimeModel model;
  for (int i = 0; i < 1000; ++i) {
    const int t = tokens(rng), b = blocks(rng);
    model.Add(t, b, (0.004 + 20e-6 * t + 1.5e-6 * b) * noise(rng));
  }
  EXPECT_NEAR(model.seconds_per_step(), 0.004, 0.001);
  EXPECT_NEAR(model.seconds_per_token(), 20e-6, 1e-6);
  EXPECT_NEAR(model.seconds_per_block(), 1.5e-6, 0.3e-6);
}

TEST(StepTime, RemembersPrefillWhileThereIsOnlyDecode) {
  StepTimeModel model;
  for (int i = 0; i < 300; ++i) model.Add(1 + i % 7 * 300, 0, 0.01 + 1e-4 * (1 + i % 7 * 300));
  for (int i = 0; i < 5000; ++i) model.Add(16, 100, 0.01 + 1e-4 * 16 + 1e-5 * 100);
  const double prefill = model.seconds_per_step() + 2000 * model.seconds_per_token();
  EXPECT_NEAR(prefill, 0.21, 0.03);
}

TEST(StepTime, BlocksCostNothingUntilStepsDifferInThem) {
  StepTimeModel model;
  model.Add(220, 0, 0.050);
  for (int i = 0; i < 60; ++i) model.Add(1, 4, 0.007);
  EXPECT_NEAR(model.seconds_per_step(), 0.007, 0.0005);
  EXPECT_LT(4 * model.seconds_per_block(), 0.0003);
}

TEST(StepTime, FollowsAMachineThatBecomesSlower) {
  StepTimeModel model;
  for (int i = 0; i < 500; ++i) model.Add(1 + i % 512, 0, 1e-4 * (1 + i % 512));
  for (int i = 0; i < 2000; ++i) model.Add(1 + i % 512, 0, 3e-4 * (1 + i % 512));
  EXPECT_NEAR(model.seconds_per_token(), 3e-4, 0.1e-4);
}

TEST(StepTime, NoCostIsEverNegative) {
  StepTimeModel model;
  for (int i = 1; i < 100; ++i) {
    model.Add(i * 10, 100 - i, 1.0 / i);  // larger steps are faster: no plane with w >= 0 fits
    EXPECT_GE(model.seconds_per_step(), 0);
    EXPECT_GE(model.seconds_per_token(), 0);
    EXPECT_GE(model.seconds_per_block(), 0);
  }
}

TEST(StepTime, AClockThatStandsStillTeachesNothing) {
  StepTimeModel model;
  model.Add(100, 100, 0);
  EXPECT_EQ(model.seconds_per_step(), 0);
  EXPECT_EQ(model.seconds_per_token(), 0);
}

}  // namespace
}  // namespace bough
