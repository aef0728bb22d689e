#include "router/stream_relay.h"

#include <vector>

#include "gtest/gtest.h"

namespace bough::router {
namespace {

using Next = StreamRelay::Next;
using Verdict = StreamRelay::Verdict;

constexpr uint64_t kEpoch = 9;

TokenRow Row(int attempt, int choice, int index, TokenFinish finish = TokenFinish::kNone) {
  TokenRow row;
  row.attempt = attempt;
  row.choice = choice;
  row.index = index;
  row.token = 100 * choice + index;
  row.finish = finish;
  return row;
}

struct Event {
  const char* what;
  int group;
  uint64_t epoch;
  TokenRow row;
  Verdict verdict;
};

TEST(StreamRelay, ForwardsEachIndexOnceAndOnlyFromTheCurrentAttempt) {
  StreamRelay relay(2, 2);
  EXPECT_EQ(relay.Begin(3, kEpoch).number, 1);
  const Event events[] = {
      {"the first token", 3, kEpoch, Row(1, 0, 0), Verdict::kForward},
      {"a duplicate", 3, kEpoch, Row(1, 0, 0), Verdict::kDrop},
      {"the other choice counts for itself", 3, kEpoch, Row(1, 1, 0), Verdict::kForward},
      {"the next token", 3, kEpoch, Row(1, 0, 1), Verdict::kForward},
      {"an old index", 3, kEpoch, Row(1, 0, 0), Verdict::kDrop},
      {"another group", 4, kEpoch, Row(1, 0, 2), Verdict::kDrop},
      {"an old epoch", 3, kEpoch - 1, Row(1, 0, 2), Verdict::kDrop},
      {"an old attempt", 3, kEpoch, Row(0, 0, 2), Verdict::kDrop},
      {"a gap", 3, kEpoch, Row(1, 0, 3), Verdict::kBroken},
      {"a choice that does not exist", 3, kEpoch, Row(1, 2, 0), Verdict::kBroken},
      {"the last token", 3, kEpoch, Row(1, 0, 2, TokenFinish::kEos), Verdict::kForward},
      {"a token after the last", 3, kEpoch, Row(1, 0, 3), Verdict::kDrop},
  };
  for (const Event& e : events)
    EXPECT_EQ(relay.OnRow(e.group, e.epoch, e.row), e.verdict) << e.what;
  EXPECT_EQ(relay.num_tokens(), 4);
  EXPECT_FALSE(relay.finished());
}

TEST(StreamRelay, ResumesWithWhatEachUnfinishedChoiceEmitted) {
  StreamRelay relay(3, 2);
  relay.Begin(0, kEpoch);
  relay.OnRow(0, kEpoch, Row(1, 0, 0));
  relay.OnRow(0, kEpoch, Row(1, 0, 1));
  relay.OnRow(0, kEpoch, Row(1, 1, 0, TokenFinish::kLength));
  EXPECT_EQ(relay.OnLost(), Next::kRetry);
  EXPECT_EQ(relay.excluded_groups(), 1u);
  const StreamRelay::Attempt second = relay.Begin(1, kEpoch + 5);
  EXPECT_EQ(second.number, 2);
  ASSERT_EQ(second.choices.size(), 2u);
  EXPECT_EQ(second.choices[0].index, 0);
  EXPECT_EQ(second.choices[0].emitted, (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(second.choices[1].index, 2);
  EXPECT_TRUE(second.choices[1].emitted.empty());
  // The lost group's late token, then the new one's.
  EXPECT_EQ(relay.OnRow(0, kEpoch, Row(1, 0, 2)), Verdict::kDrop);
  EXPECT_EQ(relay.OnRow(1, kEpoch + 5, Row(2, 0, 2)), Verdict::kForward);
}

TEST(StreamRelay, GivesUpAfterTwoRetries) {
  StreamRelay relay(1, 2);
  relay.Begin(0, kEpoch);
  EXPECT_EQ(relay.OnLost(), Next::kRetry);
  relay.Begin(1, kEpoch);
  EXPECT_EQ(relay.OnLost(), Next::kRetry);
  relay.Begin(2, kEpoch);
  EXPECT_EQ(relay.OnLost(), Next::kGiveUp);
  EXPECT_EQ(relay.excluded_groups(), 0b111u);
}

TEST(StreamRelay, ARefusalIsTriedElsewhereOnceAndCostsNoRetry) {
  StreamRelay relay(1, 1);
  relay.Begin(0, kEpoch);
  EXPECT_EQ(relay.OnRefused(), Next::kRetry);
  EXPECT_EQ(relay.num_retries(), 0);
  relay.Begin(1, kEpoch);
  EXPECT_EQ(relay.OnRefused(), Next::kGiveUp);
}

TEST(StreamRelay, AStaleEpochDoesNotExcludeTheGroup) {
  StreamRelay relay(1, 1);
  relay.Begin(0, kEpoch);
  EXPECT_EQ(relay.OnStale(), Next::kRetry);
  EXPECT_EQ(relay.excluded_groups(), 0u);
  relay.Begin(0, kEpoch + 1);
  EXPECT_EQ(relay.OnStale(), Next::kGiveUp);
}

TEST(StreamRelay, IsFinishedWhenEveryChoiceIsWhateverEndedIt) {
  StreamRelay relay(2, 2);
  relay.Begin(0, kEpoch);
  relay.OnRow(0, kEpoch, Row(1, 0, 0, TokenFinish::kStopToken));
  EXPECT_FALSE(relay.finished());
  relay.FinishChoice(1);
  relay.FinishChoice(1);
  EXPECT_TRUE(relay.finished());
}

}  // namespace
}  // namespace bough::router
