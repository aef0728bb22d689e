#include "router/dispatcher.h"

#include <memory>
#include <string>
#include <vector>

#include "common/metrics.h"
#include "gtest/gtest.h"
#include "tests/testing/tiny_tokenizer.h"

namespace bough::router {
namespace {

using testing::TinyText;

constexpr int kEos = 2;

class DispatcherTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { tokenizer_ = bough::testing::LoadTinyTokenizer().release(); }

  static RouterConfig Config() {
    RouterConfig config;
    config.groups = {{"a", "x:1"}, {"b", "x:2"}, {"c", "x:3"}};
    config.max_requests_in_flight = 3;
    config.admission_hold = absl::Seconds(10);  // dispatcher_admission_test.cc is about holding
    return config;
  }

  void Ready(int group, uint64_t epoch = 1) {
    GroupHello hello;
    hello.epoch = epoch;
    hello.ready = true;
    hello.model_key = "m";
    hello.block_size = kBlockSize;
    hello.total_blocks = 100;
    hello.limits.vocab_size = 400;
    hello.limits.max_model_len = 4096;
    core_.OnEvent(group, hello, now_);
    core_.OnEvent(group,
                  GroupLoad{.free_blocks = 100, .prefill_seconds_per_token = 1e-3, .epoch = epoch},
                  now_);
  }

  std::shared_ptr<Request> Ask(const std::string& id, int prompt_tokens = 10) {
    auto request = std::make_shared<Request>();
    request->id = id;
    request->prompt_ids.assign(prompt_tokens, 300);
    request->sampling.max_tokens = 100;
    request->arrival = now_;
    return request;
  }

  // Starts it and returns the Submit that came out.
  SubmitCommand Start(uint64_t handle, std::shared_ptr<Request> request) {
    auto error = core_.Start(handle, std::move(request), now_);
    EXPECT_FALSE(error.has_value()) << error->message;
    return TakeSubmit();
  }

  SubmitCommand TakeSubmit() {
    Collect();
    EXPECT_FALSE(submits_.empty());
    if (submits_.empty()) return {};
    auto [group, submit] = submits_.back();
    submits_.pop_back();
    group_ = group;
    return submit;
  }

  void Collect() {
    Actions actions = core_.TakeActions();
    for (auto& [group, command] : actions.commands) {
      if (auto* submit = std::get_if<SubmitCommand>(&command))
        submits_.emplace_back(group, *submit);
      if (auto* cancel = std::get_if<CancelCommand>(&command))
        cancels_.emplace_back(group, *cancel);
      syncs_ += std::holds_alternative<CacheSyncCommand>(command);
    }
    for (auto& [handle, event] : actions.events) {
      if (auto* delta = std::get_if<DeltaEvent>(&event)) text_ += delta->text;
      if (std::holds_alternative<StartEvent>(event)) ++starts_;
      if (auto* finish = std::get_if<FinishEvent>(&event)) finishes_.push_back(*finish);
      if (auto* end = std::get_if<EndEvent>(&event)) end_ = *end;
      if (auto* error = std::get_if<ErrorEvent>(&event)) error_ = error->error;
    }
    resets_.insert(resets_.end(), actions.resets.begin(), actions.resets.end());
  }

  void Admit(const SubmitCommand& s) {
    core_.OnEvent(group_, Ack{s.handle, s.attempt, /*cached_tokens=*/0, /*shared_blocks=*/0}, now_);
  }
  // Tokens `index`, `index` + 1, ... of choice 0.
  void Say(const SubmitCommand& s, const std::string& text, int index,
           TokenFinish last = TokenFinish::kNone) {
    StepOutput step;
    for (int32_t token : TinyText(text)) {
      TokenRow row;
      row.handle = s.handle;
      row.attempt = s.attempt;
      row.index = index++;
      row.token = token;
      step.rows.push_back(row);
    }
    if (last != TokenFinish::kNone) step.rows.back().finish = last;
    core_.OnEvent(group_, step, now_);
  }
  void Refuse(const SubmitCommand& s, const std::string& reason) {
    Done done;
    done.handle = s.handle;
    done.attempt = s.attempt;
    done.code = reason == "QUEUE_FULL" ? absl::StatusCode::kResourceExhausted
                                       : absl::StatusCode::kUnavailable;
    done.reason = reason;
    core_.OnEvent(group_, done, now_);
  }

  static Tokenizer* tokenizer_;
  Metrics registry_;
  RouterMetrics metrics_{&registry_, Config().groups};
  Dispatcher core_{Config(), tokenizer_, &metrics_};
  absl::Time now_ = absl::UnixEpoch() + absl::Seconds(100);

  int group_ = -1;  // of the last submit taken
  std::vector<std::pair<int, SubmitCommand>> submits_;
  std::vector<std::pair<int, CancelCommand>> cancels_;
  std::string text_;
  int starts_ = 0, syncs_ = 0;
  std::vector<FinishEvent> finishes_;
  std::optional<EndEvent> end_;
  std::optional<ApiError> error_;
  std::vector<int> resets_;
};

Tokenizer* DispatcherTest::tokenizer_ = nullptr;

TEST_F(DispatcherTest, StreamsAnAnswerAndItsCounts) {
  Ready(0);
  const SubmitCommand s = Start(1, Ask("r"));
  now_ += absl::Seconds(1);
  Admit(s);
  now_ += absl::Seconds(1);
  Say(s, "ab", 0);
  now_ += absl::Seconds(1);
  Say(s, "c", 2, TokenFinish::kLength);
  Collect();
  EXPECT_EQ(text_, "abc");
  EXPECT_EQ(starts_, 1);
  ASSERT_EQ(finishes_.size(), 1u);
  EXPECT_EQ(finishes_[0].reason, FinishReason::kLength);
  ASSERT_TRUE(end_.has_value());
  const RequestSummary& summary = end_->summary;
  EXPECT_EQ(summary.group, "a");
  EXPECT_EQ(summary.completion_tokens, 3);
  EXPECT_DOUBLE_EQ(summary.queue_seconds, 1);
  EXPECT_DOUBLE_EQ(summary.ttft_seconds, 2);
  EXPECT_DOUBLE_EQ(summary.e2e_seconds, 3);
  EXPECT_DOUBLE_EQ(summary.mean_itl_seconds, 0.5);
  EXPECT_EQ(core_.num_in_flight(), 0);
}

TEST_F(DispatcherTest, TwoRequestsOfOnePrefixThatArriveTogetherGoTogether) {
  for (int g = 0; g < 3; ++g) Ready(g);
  Start(1, Ask("other", 20));  // elsewhere, so that the choice below is not just the first group
  const int other = group_;
  Start(2, Ask("first", 640));
  const int first = group_;
  EXPECT_NE(first, other);
  Start(3, Ask("second", 640));
  EXPECT_EQ(group_, first);
}

TEST_F(DispatcherTest, ALostGroupIsInvisibleToTheClient) {
  Ready(0);
  Ready(1);
  const SubmitCommand first = Start(1, Ask("r"));
  const int lost = group_;
  Admit(first);
  Say(first, "abc", 0);
  core_.OnDown(lost, "broken pipe", now_);
  const SubmitCommand second = TakeSubmit();
  EXPECT_NE(group_, lost);
  EXPECT_EQ(second.attempt, 2);
  ASSERT_EQ(second.choices.size(), 1u);
  EXPECT_EQ(second.choices[0].emitted, TinyText("abc"));
  Admit(second);
  Say(second, "def", 3, TokenFinish::kLength);
  Collect();
  EXPECT_EQ(text_, "abcdef");
  EXPECT_EQ(starts_, 1);
  EXPECT_TRUE(end_.has_value());
  EXPECT_FALSE(error_.has_value());
  EXPECT_EQ(metrics_.resumes.Value(), 1);
}

TEST_F(DispatcherTest, NothingIsResumedWhenAllChoicesWereFinishedBeforeTheGroupDied) {
  Ready(0);
  Ready(1);
  const SubmitCommand s = Start(1, Ask("r"));
  Say(s, "a", 0, TokenFinish::kLength);
  core_.OnDown(group_, "gone", now_);
  Collect();
  EXPECT_TRUE(end_.has_value());
  EXPECT_TRUE(submits_.empty());
}

TEST_F(DispatcherTest, ALossWithNoOtherGroupIsUnavailableBeforeTheFirstTokenAndAbortedAfter) {
  Ready(0);
  Start(1, Ask("r"));
  core_.OnDown(0, "gone", now_);
  Collect();
  ASSERT_TRUE(error_.has_value());
  EXPECT_EQ(error_->code, absl::StatusCode::kUnavailable);
  EXPECT_TRUE(error_->retry_after.has_value());
  Ready(0, 2);
  const SubmitCommand s = Start(2, Ask("r"));
  Say(s, "a", 0);
  core_.OnDown(0, "gone again", now_);
  Collect();
  EXPECT_EQ(error_->code, absl::StatusCode::kAborted);
  EXPECT_EQ(error_->reason, "GROUP_LOST");
}

TEST_F(DispatcherTest, ANewEpochVoidsWhatWasSubmittedUnderTheOld) {
  Ready(0);
  Ready(1);
  const SubmitCommand s = Start(1, Ask("r"));
  const int restarted = group_;
  Ready(restarted, /*epoch=*/2);
  const SubmitCommand again = TakeSubmit();
  EXPECT_NE(group_, restarted);
  group_ = restarted;
  Say(s, "stale", 0);
  Collect();
  EXPECT_EQ(text_, "");
  EXPECT_EQ(again.attempt, 2);
}

TEST_F(DispatcherTest, ARefusedRequestGoesToTheNextGroupOnce) {
  Ready(0);
  Ready(1);
  Ready(2);
  const SubmitCommand first = Start(1, Ask("r"));
  const int full = group_;
  Refuse(first, "QUEUE_FULL");
  const SubmitCommand second = TakeSubmit();
  EXPECT_NE(group_, full);
  Refuse(second, "QUEUE_FULL");
  Collect();
  EXPECT_TRUE(submits_.empty());
  ASSERT_TRUE(error_.has_value());
  EXPECT_EQ(error_->code, absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(error_->reason, "QUEUE_FULL");
  EXPECT_TRUE(error_->retry_after.has_value());
}

TEST_F(DispatcherTest, AGroupThatSkipsATokenIsLeft) {
  Ready(0);
  Ready(1);
  const SubmitCommand first = Start(1, Ask("r"));
  const int broken = group_;
  Say(first, "ab", 0);
  Say(first, "d", 3);
  const SubmitCommand second = TakeSubmit();
  EXPECT_NE(group_, broken);
  EXPECT_EQ(second.choices[0].emitted, TinyText("ab"));
  ASSERT_EQ(cancels_.size(), 1u);
  EXPECT_EQ(cancels_[0].first, broken);
}

TEST_F(DispatcherTest, AStopStringEndsTheChoiceHereAndAtTheGroup) {
  Ready(0);
  auto request = Ask("r");
  request->stop_strings = {"END"};
  const SubmitCommand s = Start(1, request);
  Say(s, "go EN", 0);
  Say(s, "Dmore", 5);
  Collect();
  EXPECT_EQ(text_, "go ");
  ASSERT_EQ(finishes_.size(), 1u);
  EXPECT_EQ(finishes_[0].stop_string, 0);
  ASSERT_EQ(cancels_.size(), 1u);
  EXPECT_EQ(cancels_[0].second.choice, 0);
  ASSERT_TRUE(end_.has_value());
  EXPECT_EQ(end_->summary.completion_tokens, 6);
}

TEST_F(DispatcherTest, ADeadlineNamesItsStageAndFreesTheGroup) {
  Ready(0);
  const char* stages[] = {"queue", "prefill", "decode"};
  for (int stage = 0; stage < 3; ++stage) {
    auto request = Ask("r");
    request->deadline = now_ + absl::Seconds(2);
    const SubmitCommand s = Start(1 + stage, request);
    EXPECT_EQ(s.timeout, absl::Seconds(2));
    if (stage >= 1) Admit(s);
    if (stage == 2) Say(s, "a", 0);
    now_ += absl::Seconds(2);
    core_.OnEvent(0, GroupLoad{}, now_);
    core_.Tick(now_);
    Collect();
    ASSERT_TRUE(error_.has_value());
    EXPECT_EQ(error_->code, absl::StatusCode::kDeadlineExceeded);
    EXPECT_EQ(error_->metadata["stage"], stages[stage]);
    EXPECT_EQ(cancels_.size(), stage + 1u);
    EXPECT_EQ(core_.num_in_flight(), 0);
  }
}

TEST_F(DispatcherTest, ASilentGroupIsDownAndItsLinkIsReset) {
  Ready(0);
  Ready(1);
  Start(1, Ask("r"));
  const int silent = group_;
  now_ += absl::Milliseconds(900);
  core_.OnEvent(1 - silent, GroupLoad{}, now_);
  core_.Tick(now_);
  Collect();
  EXPECT_TRUE(resets_.empty());
  now_ += absl::Milliseconds(200);
  core_.Tick(now_);
  TakeSubmit();
  EXPECT_EQ(group_, 1 - silent);
  EXPECT_EQ(resets_, std::vector<int>{silent});
  EXPECT_EQ(core_.groups()[silent].phase, GroupState::Phase::kConnecting);
}

TEST_F(DispatcherTest, AdmitsOnlyWhatItCanServe) {
  auto refusal = [this](const std::string& id) {
    auto error = core_.Start(99, Ask(id), now_);
    return error ? error->reason : "";
  };
  EXPECT_EQ(refusal("r"), "NO_GROUP");
  GroupHello loading;
  loading.epoch = 1;
  loading.block_size = kBlockSize;
  core_.OnEvent(0, loading, now_);
  EXPECT_EQ(refusal("r"), "MODEL_LOADING");
  Ready(0);
  Start(1, Ask("one"));
  EXPECT_EQ(refusal("one"), "DUPLICATE_REQUEST");
  Start(2, Ask("two"));
  Start(3, Ask("three"));
  EXPECT_EQ(refusal("four"), "QUEUE_FULL");
  core_.SetGroupDraining(0, true);
  EXPECT_EQ(refusal("four"), "NO_GROUP");
  core_.SetGroupDraining(0, false);
  core_.SetDraining(true);
  EXPECT_EQ(refusal("four"), "DRAINING");
  EXPECT_EQ(core_.num_in_flight(), 3);
}

TEST_F(DispatcherTest, EndTellsTheGroupAtOnceAndFreesTheRequestId) {
  Ready(0);
  Start(1, Ask("r"));
  ApiError gone;
  gone.code = absl::StatusCode::kCancelled;
  EXPECT_TRUE(core_.End(1, gone, now_));
  EXPECT_FALSE(core_.End(1, gone, now_));
  Collect();
  ASSERT_EQ(cancels_.size(), 1u);
  EXPECT_EQ(cancels_[0].second.choice, -1);
  EXPECT_EQ(core_.FindRequest("r"), 0u);
  Start(2, Ask("r"));
}

TEST_F(DispatcherTest, FollowsTheCacheOfAGroupThatServes) {
  Ready(0);
  Collect();
  EXPECT_EQ(syncs_, 1);
  core_.OnEvent(0, CacheSyncReply{.number = 1, .epoch = 1, .resumed = false, .seq = 4}, now_);
  core_.OnEvent(0, CacheDelta{.epoch = 1, .seq = 6, .stored = {}, .removed = {}}, now_);
  Collect();
  EXPECT_EQ(syncs_, 2);  // 5 is missing
}

TEST_F(DispatcherTest, ARequestThatIsSentBackIsPlacedAgainOnceAndThenStays) {
  Ready(0);
  Ready(1);
  const SubmitCommand first = Start(1, Ask("r"));
  const int busy = group_;
  ASSERT_TRUE(first.expected_wait_seconds.has_value());
  EXPECT_EQ(*first.expected_wait_seconds, 0);
  GroupLoad load{.free_blocks = 100, .drain_seconds = 1, .prefill_seconds_per_token = 1e-3};
  load.epoch = 1;
  core_.OnEvent(busy, Refused{first.handle, first.attempt, load}, now_);
  const SubmitCommand second = TakeSubmit();
  EXPECT_NE(group_, busy);
  EXPECT_EQ(second.attempt, 2);
  EXPECT_FALSE(second.expected_wait_seconds.has_value());
  core_.OnEvent(busy, Refused{first.handle, first.attempt, load}, now_);  // twice: of no attempt
  Collect();
  EXPECT_TRUE(submits_.empty());
  Say(second, "a", 0, TokenFinish::kLength);
  Collect();
  EXPECT_TRUE(end_.has_value());
  EXPECT_EQ(end_->summary.retries, 0);
}

TEST_F(DispatcherTest, EosIsNoText) {
  Ready(0);
  const SubmitCommand s = Start(1, Ask("r"));
  Say(s, "hi", 0);
  TokenRow eos;
  eos.handle = s.handle;
  eos.attempt = s.attempt;
  eos.index = 2;
  eos.token = kEos;
  eos.finish = TokenFinish::kEos;
  core_.OnEvent(0, StepOutput{{eos}}, now_);
  Collect();
  EXPECT_EQ(text_, "hi");
  ASSERT_EQ(finishes_.size(), 1u);
  EXPECT_EQ(finishes_[0].reason, FinishReason::kStop);
  EXPECT_EQ(finishes_[0].stop_token_id, -1);
}

}  // namespace
}  // namespace bough::router
