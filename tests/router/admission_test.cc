#include "router/admission.h"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace bough::router {
namespace {

constexpr double kSecondsPerToken = 1e-3;

// One or several groups that serve 1,000 tokens/s; placement takes the one with the least wait.
class AdmissionTest : public ::testing::Test {
 protected:
  void Push(uint64_t handle, const std::string& tenant, double tokens,
            absl::Duration deadline = absl::InfiniteDuration(), double weight = 1) {
    tokens_[handle] = tokens;
    queue_.Push({.handle = handle,
                 .tenant = tenant,
                 .weight = weight,
                 .arrival = now_,
                 .prefill_seconds = tokens * kSecondsPerToken,
                 .deadline = now_ + deadline});
  }

  std::vector<AdmissionDecision> Poll() {
    auto place = [this](uint64_t handle, std::span<const double> backlog) {
      ++num_placements_;
      AdmissionOffer offer;
      for (int g = 0; g < static_cast<int>(waits_.size()); ++g) {
        const double wait = waits_[g] + backlog[g];
        if (offer.group >= 0 && wait >= offer.wait_seconds) continue;
        offer.group = g;
        offer.wait_seconds = wait;
      }
      offer.uncached_tokens = tokens_[handle];
      offer.prefill_seconds = tokens_[handle] * kSecondsPerToken;
      offer.soonest_seconds = offer.wait_seconds + offer.prefill_seconds;
      return offer;
    };
    std::vector<AdmissionDecision> decisions = queue_.Poll(now_, waits_, place);
    for (const AdmissionDecision& d : decisions) {
      if (d.group >= 0) waits_[d.group] += tokens_[d.handle] * kSecondsPerToken;
    }
    return decisions;
  }

  // Serves until nothing is held; what went, in order.
  std::vector<uint64_t> Drain() {
    std::vector<uint64_t> order;
    while (queue_.size() > 0) {
      for (const AdmissionDecision& d : Poll()) order.push_back(d.handle);
      Pass(0.01);
    }
    return order;
  }

  void Pass(double seconds) {
    now_ += absl::Seconds(seconds);
    for (double& wait : waits_) wait = std::max(0.0, wait - seconds);
  }

  absl::Time now_ = absl::UnixEpoch();
  AdmissionQueue queue_{AdmissionConfig{.hold_seconds = 0.1, .slo_seconds = 1, .stretch = 4}};
  std::vector<double> waits_ = {0};
  std::map<uint64_t, double> tokens_;
  int num_placements_ = 0;
};

TEST_F(AdmissionTest, WhatCanStartSoonGoesAtOnce) {
  Push(1, "a", 500);
  const auto decisions = Poll();
  ASSERT_EQ(decisions.size(), 1u);
  EXPECT_EQ(decisions[0].handle, 1u);
  EXPECT_EQ(decisions[0].group, 0);
  EXPECT_EQ(queue_.size(), 0);
}

TEST_F(AdmissionTest, ARequestIsHeldUntilItsGroupHasAboutAChunkLeft) {
  waits_ = {0.5};
  Push(1, "a", 500);
  EXPECT_TRUE(Poll().empty());
  Pass(0.35);
  EXPECT_TRUE(Poll().empty());
  Pass(0.1);
  EXPECT_EQ(Poll().size(), 1u);
}

TEST_F(AdmissionTest, EachFreeGroupGetsOne) {
  waits_ = {0, 0, 5};
  for (uint64_t h = 1; h <= 4; ++h) Push(h, "a", 1000);
  const auto decisions = Poll();
  ASSERT_EQ(decisions.size(), 2u);
  EXPECT_NE(decisions[0].group, decisions[1].group);
  EXPECT_EQ(queue_.size(), 2);
}

TEST_F(AdmissionTest, WithinATenantTheEarliestDueGoesFirst) {
  waits_ = {1};
  Push(1, "a", 4000);  // due after 1 + 4 * 4 s
  Push(2, "a", 100);
  Pass(0.2);
  Push(3, "a", 100);
  EXPECT_EQ(Drain(), (std::vector<uint64_t>{2, 3, 1}));
}

TEST_F(AdmissionTest, ALongPromptIsNotPassedOverForEver) {
  waits_ = {1};
  Push(1, "a", 1000);
  Pass(4.1);  // due now
  waits_ = {1};
  for (uint64_t h = 2; h < 10; ++h) Push(h, "a", 100);
  EXPECT_EQ(Drain().front(), 1u);
}

TEST_F(AdmissionTest, AFloodDelaysItsSenderAlone) {
  waits_ = {1};
  for (uint64_t h = 0; h < 50; ++h) Push(h, "flood", 200);
  for (uint64_t h = 100; h < 105; ++h) Push(h, "quiet", 200);
  const std::vector<uint64_t> order = Drain();
  ASSERT_EQ(order.size(), 55u);
  int before_last_quiet = 0;
  for (size_t i = 0; i < order.size() && order[i] != 104; ++i) before_last_quiet += order[i] < 100;
  EXPECT_LE(before_last_quiet, 5);  // one for one
}

TEST_F(AdmissionTest, FairnessIsOverTokensNotRequests) {
  waits_ = {1};
  for (uint64_t h = 0; h < 10; ++h) Push(h, "long", 1000);
  for (uint64_t h = 100; h < 200; ++h) Push(h, "short", 100);
  const std::vector<uint64_t> order = Drain();
  int num_short = 0;
  for (size_t i = 0; i < 33; ++i) num_short += order[i] >= 100;
  EXPECT_NEAR(num_short, 30, 2);  // ten for each long one
}

TEST_F(AdmissionTest, AWeightIsAShare) {
  waits_ = {1};
  for (uint64_t h = 0; h < 30; ++h) Push(h, "a", 200, absl::InfiniteDuration(), 2);
  for (uint64_t h = 100; h < 130; ++h) Push(h, "b", 200);
  const std::vector<uint64_t> order = Drain();
  int num_a = 0;
  for (size_t i = 0; i < 30; ++i) num_a += order[i] < 100;
  EXPECT_NEAR(num_a, 20, 1);
}

TEST_F(AdmissionTest, ATenantThatWasAwayHasSavedNothingUp) {
  waits_ = {1};
  for (uint64_t h = 0; h < 20; ++h) Push(h, "a", 200);
  Drain();
  waits_ = {1};
  for (uint64_t h = 20; h < 40; ++h) Push(h, "a", 200);
  for (uint64_t h = 100; h < 120; ++h) Push(h, "b", 200);
  const std::vector<uint64_t> order = Drain();
  int num_a = 0;
  for (size_t i = 0; i < 20; ++i) num_a += order[i] < 100;
  EXPECT_NEAR(num_a, 10, 1);
}

TEST_F(AdmissionTest, OnlyWhatCannotMeetItsDeadlineIsRejected) {
  waits_ = {2, 3};
  Push(1, "a", 500, absl::Seconds(2.6));
  Push(2, "a", 500, absl::Seconds(2.4));
  const auto decisions = Poll();
  ASSERT_EQ(decisions.size(), 1u);
  EXPECT_EQ(decisions[0].handle, 2u);
  EXPECT_EQ(decisions[0].group, -1);
  EXPECT_EQ(queue_.size(), 1);
}

TEST_F(AdmissionTest, ARejectionSaysAfterHowLongItWouldHaveFitted) {
  waits_ = {2};
  Push(1, "a", 500, absl::Seconds(1));
  const auto decisions = Poll();
  ASSERT_EQ(decisions.size(), 1u);
  EXPECT_EQ(decisions[0].retry_after, absl::Seconds(1.5));
  Pass(1.5);
  Push(2, "a", 500, absl::Seconds(1));
  EXPECT_TRUE(Poll().empty());  // held, not rejected
}

TEST_F(AdmissionTest, WhatWaitsBeforeItCountsForADeadline) {
  waits_ = {1};
  for (uint64_t h = 1; h <= 3; ++h) Push(h, "a", 1000);
  Push(4, "a", 100, absl::Seconds(2));
  Push(5, "a", 9000, absl::Seconds(12));  // 1 s, three of 1 s and 0.1 s before it, and its own 9 s
  const auto decisions = Poll();
  ASSERT_EQ(decisions.size(), 1u);
  EXPECT_EQ(decisions[0].handle, 5u);
}

TEST_F(AdmissionTest, WhileNoGroupIsOpenNothingIsPlacedTwice) {
  waits_ = {10};
  for (uint64_t h = 0; h < 100; ++h) Push(h, "a", 100);
  Poll();
  EXPECT_EQ(num_placements_, 100);
  Pass(1);
  Poll();
  EXPECT_EQ(num_placements_, 100);
}

TEST_F(AdmissionTest, ARemovedRequestNeverGoes) {
  waits_ = {1};
  Push(1, "a", 100);
  Push(2, "a", 100);
  EXPECT_TRUE(queue_.Remove(1));
  EXPECT_FALSE(queue_.Remove(1));
  EXPECT_EQ(Drain(), (std::vector<uint64_t>{2}));
}

TEST_F(AdmissionTest, WithoutAGroupEverythingWaits) {
  waits_ = {};
  Push(1, "a", 100, absl::Seconds(1));
  EXPECT_TRUE(Poll().empty());
  EXPECT_EQ(queue_.size(), 1);
}

}  // namespace
}  // namespace bough::router
