// What the dispatcher does when groups have more work than they can begin: holds, shares, refuses.

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "common/metrics.h"
#include "gtest/gtest.h"
#include "router/dispatcher.h"
#include "tests/testing/tiny_tokenizer.h"

namespace bough::router {
namespace {

class DispatcherAdmissionTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { tokenizer_ = bough::testing::LoadTinyTokenizer().release(); }

  static RouterConfig Config() {
    RouterConfig config;
    config.groups = {{"a", "x:1"}, {"b", "x:2"}};
    config.admission_hold = absl::Milliseconds(200);
    config.max_queue_wait = absl::Seconds(20);
    config.tenant_weights = {{"gold", 3}};
    return config;
  }

  void Ready(int group, uint64_t epoch = 1) {
    GroupHello hello;
    hello.epoch = epoch;
    hello.ready = true;
    hello.model_key = "m";
    hello.block_size = kBlockSize;
    hello.total_blocks = 10000;
    hello.limits.vocab_size = 400;
    hello.limits.max_model_len = 4096;
    core_.OnEvent(group, hello, now_);
    Report(group, 0);
  }

  // A millisecond later, a load report that counts all that was sent so far.
  void Report(int group, double drain_seconds) {
    now_ += absl::Milliseconds(1);
    core_.OnEvent(group, Load(drain_seconds, num_sent_[group]), now_);
    Collect();
  }

  static GroupLoad Load(double drain_seconds, uint64_t submits) {
    return {.free_blocks = 10000,
            .drain_seconds = drain_seconds,
            .prefill_seconds_per_token = 1e-3,
            .epoch = 1,
            .submits = submits};
  }

  // The reason of a refusal, "" = admitted. Every prompt is its own, so that none is cached.
  std::string Start(uint64_t handle, const std::string& tenant, int prompt_tokens = 100,
                    absl::Duration timeout = absl::InfiniteDuration()) {
    auto request = std::make_shared<Request>();
    request->id = std::to_string(handle);
    request->prompt_ids.assign(prompt_tokens, 3 + static_cast<int32_t>(handle));
    request->sampling.max_tokens = 1;
    request->tenant = tenant;
    request->arrival = now_;
    request->deadline = now_ + timeout;
    const std::optional<ApiError> error = core_.Start(handle, request, now_);
    retry_after_ = error ? error->retry_after : std::nullopt;
    Collect();
    return error ? error->reason : "";
  }

  void Collect() {
    Actions actions = core_.TakeActions();
    for (auto& [group, command] : actions.commands) {
      if (auto* submit = std::get_if<SubmitCommand>(&command)) {
        sent_.push_back(submit->handle);
        submits_.push_back(*submit);
        ++num_sent_[group];
      }
    }
    for (auto& [handle, event] : actions.events) {
      if (auto* error = std::get_if<ErrorEvent>(&event)) {
        failed_.push_back(handle);
        error_ = error->error;
      }
    }
  }

  void Wait(absl::Duration time) {
    now_ += time;
    core_.Tick(now_);
    Collect();
  }

  double Held(const std::string& tenant) {
    return registry_
        .Gauge("requests_held", "Requests that wait here for their turn.", {{"tenant", tenant}})
        .Value();
  }

  static Tokenizer* tokenizer_;
  Metrics registry_;
  RouterMetrics metrics_{&registry_, Config().groups, Config().tenant_weights};
  Dispatcher core_{Config(), tokenizer_, &metrics_};
  absl::Time now_ = absl::UnixEpoch() + absl::Seconds(100);

  uint64_t num_sent_[2] = {};
  std::vector<uint64_t> sent_, failed_;
  std::vector<SubmitCommand> submits_;
  ApiError error_;
  std::optional<absl::Duration> retry_after_;
};

Tokenizer* DispatcherAdmissionTest::tokenizer_ = nullptr;

TEST_F(DispatcherAdmissionTest, HoldsARequestUntilAGroupHasLittleBeforeIt) {
  Ready(0);
  Report(0, 5);
  EXPECT_EQ(Start(1, ""), "");
  EXPECT_TRUE(sent_.empty());
  EXPECT_EQ(core_.num_held(), 1);
  EXPECT_EQ(core_.num_in_flight(), 1);
  EXPECT_EQ(Held("other"), 1);
  now_ += absl::Seconds(1);
  Report(0, 0.1);
  EXPECT_EQ(sent_, std::vector<uint64_t>{1});
  EXPECT_EQ(core_.num_held(), 0);
  EXPECT_EQ(Held("other"), 0);
}

TEST_F(DispatcherAdmissionTest, BindsLate) {
  Ready(0);
  Ready(1);
  Report(0, 1);
  Report(1, 5);
  Start(1, "");  // group 0 is the better one now, but not when the request leaves
  Report(1, 0);
  EXPECT_EQ(num_sent_[0], 0u);
  EXPECT_EQ(num_sent_[1], 1u);
}

TEST_F(DispatcherAdmissionTest, ANewRequestDoesNotOvertakeThoseThatWait) {
  Ready(0);
  Report(0, 5);
  Start(1, "", 150);
  Start(2, "", 150);
  Start(3, "", 150);
  Report(0, 0.1);
  EXPECT_EQ(sent_, std::vector<uint64_t>{1});  // it fills the group up again
  Wait(absl::Milliseconds(100));
  Report(0, 0.1);
  EXPECT_EQ(sent_, (std::vector<uint64_t>{1, 2}));
}

TEST_F(DispatcherAdmissionTest, AFloodDelaysItsSenderOnly) {
  Ready(0);
  Report(0, 5);
  for (uint64_t handle = 1; handle <= 20; ++handle) Start(handle, "flood");
  Start(21, "small");
  for (int i = 0; i < 3; ++i) {
    Wait(absl::Milliseconds(100));
    Report(0, 0.15);
  }
  EXPECT_TRUE(std::count(sent_.begin(), sent_.end(), 21)) << sent_.size();
  EXPECT_LE(sent_.size(), 4u);
}

TEST_F(DispatcherAdmissionTest, TenantsShareByTheirWeights) {
  Ready(0);
  Report(0, 5);
  for (uint64_t handle = 1; handle <= 40; ++handle) Start(handle, handle <= 20 ? "gold" : "tin");
  EXPECT_EQ(Held("gold"), 20);
  for (int i = 0; i < 16; ++i) {
    Wait(absl::Milliseconds(100));
    Report(0, 0.15);
  }
  const auto gold =
      std::count_if(sent_.begin(), sent_.end(), [](uint64_t handle) { return handle <= 20; });
  EXPECT_EQ(sent_.size(), 16u);
  EXPECT_EQ(gold, 12);  // at 3 to 1
}

TEST_F(DispatcherAdmissionTest, RefusesAtOnceWhatCannotMakeItsDeadline) {
  Ready(0);
  Report(0, 5);
  EXPECT_EQ(Start(1, "", 100, absl::Seconds(3)), "OVERLOADED");
  ASSERT_TRUE(retry_after_.has_value());
  // 5 s of queue and 0.1 s of prefill, 3 s after arrival.
  EXPECT_NEAR(absl::ToDoubleSeconds(*retry_after_), 2.1, 1e-6);
  EXPECT_EQ(core_.num_in_flight(), 0);
  EXPECT_EQ(Start(1, "", 100, absl::Seconds(6)), "") << "the refused id and handle are free again";
}

TEST_F(DispatcherAdmissionTest, RefusesWhatCannotMakeItBehindThoseThatWaitBeforeIt) {
  Ready(0);
  Report(0, 1);
  for (uint64_t handle = 1; handle <= 70; ++handle) Start(handle, "");
  now_ += absl::Milliseconds(1);
  EXPECT_EQ(Start(71, "", 100, absl::Seconds(6)), "");
  Wait(absl::Milliseconds(5));
  EXPECT_EQ(failed_, std::vector<uint64_t>{71});
  EXPECT_EQ(error_.reason, "OVERLOADED");
  EXPECT_TRUE(error_.retry_after.has_value());
  EXPECT_EQ(core_.num_held(), 70);
}

TEST_F(DispatcherAdmissionTest, RefusesAQueueThatIsLongerThanTheRouterAllows) {
  Ready(0);
  Report(0, 30);
  EXPECT_EQ(Start(1, ""), "OVERLOADED");
  Report(0, 19);
  EXPECT_EQ(Start(2, "", 4000), "") << "a long prompt's own prefill is not queueing";
}

TEST_F(DispatcherAdmissionTest, ACancelledRequestLeavesTheQueue) {
  Ready(0);
  Report(0, 5);
  Start(1, "");
  ApiError gone;
  gone.code = absl::StatusCode::kCancelled;
  EXPECT_TRUE(core_.End(1, gone, now_));
  EXPECT_EQ(core_.num_held(), 0);
  EXPECT_EQ(Held("other"), 0);
  Report(0, 0);
  EXPECT_TRUE(sent_.empty());
}

TEST_F(DispatcherAdmissionTest, AnExpiredRequestLeavesTheQueueInStageQueue) {
  Ready(0);
  Report(0, 5);
  Start(1, "", 100, absl::Seconds(6));
  for (int i = 0; i < 13; ++i) {
    now_ += absl::Milliseconds(500);
    Report(0, 0.3);
    core_.Tick(now_);
  }
  Collect();
  EXPECT_EQ(failed_, std::vector<uint64_t>{1});
  EXPECT_EQ(error_.code, absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(error_.metadata["stage"], "queue");
  EXPECT_EQ(core_.num_held(), 0);
}

TEST_F(DispatcherAdmissionTest, HeldRequestsFailWhenNoGroupIsLeft) {
  Ready(0);
  Report(0, 5);
  Start(1, "");
  core_.OnDown(0, "gone", now_);
  Wait(absl::Milliseconds(5));
  EXPECT_EQ(failed_, std::vector<uint64_t>{1});
  EXPECT_EQ(error_.reason, "NO_GROUP");
  EXPECT_TRUE(error_.retry_after.has_value());
}

TEST_F(DispatcherAdmissionTest, WhatAGroupLostWaitsForItsTurnElsewhere) {
  Ready(0);
  Ready(1);
  Report(1, 5);
  Start(1, "");
  EXPECT_EQ(num_sent_[0], 1u);
  core_.OnDown(0, "gone", now_);
  Collect();
  EXPECT_EQ(num_sent_[1], 0u);
  EXPECT_EQ(core_.num_held(), 1);
  Report(1, 0);
  EXPECT_EQ(num_sent_[1], 1u);
  EXPECT_EQ(submits_.back().attempt, 2);
  EXPECT_TRUE(failed_.empty());
}

TEST_F(DispatcherAdmissionTest, ARefusalIsScoredAgainWithTheStateThatCameAlong) {
  Ready(0);
  Ready(1);
  Report(1, 0.15);
  Start(1, "");
  ASSERT_EQ(num_sent_[0], 1u);
  core_.OnEvent(0, Refused{.handle = 1, .attempt = 1, .load = Load(/*drain_seconds=*/2, 1)}, now_);
  Collect();
  EXPECT_EQ(num_sent_[1], 1u);
  EXPECT_FALSE(submits_.back().expected_wait_seconds.has_value()) << "it is not sent back twice";
}

TEST_F(DispatcherAdmissionTest, ExplainsWhyAGroupTakesNothing) {
  Ready(0);
  Request request;
  request.prompt_ids.assign(100, 5);
  std::vector<RouteTerm> route = core_.Explain(request);
  ASSERT_EQ(route.size(), 2u);
  EXPECT_TRUE(route[0].chosen);
  EXPECT_EQ(route[0].why_not, "");
  EXPECT_FALSE(route[0].in_sync) << "it has not said what it caches";
  EXPECT_EQ(route[1].why_not, "not connected");
  core_.SetGroupDraining(0, true);
  EXPECT_EQ(core_.Explain(request)[0].why_not, "drained by an operator");
}

}  // namespace
}  // namespace bough::router
