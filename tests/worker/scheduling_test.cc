// Who runs when: chunks, budgets, priorities, preemption, forks. Seen through the batches of an
// engine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/worker/engine_harness.h"

namespace bough::testing {
namespace {

using ::testing::ElementsAre;

// Handles of finished requests in the order of their Done.
std::vector<uint64_t> DoneOrder(Harness* h) {
  std::vector<uint64_t> order;
  while (const auto events = h->Step()) {
    for (const DoneEvent& done : events->dones) order.push_back(done.key.handle);
  }
  return order;
}

TEST(Scheduling, DecodeRowsGoFirstAndPrefillsFillTheBudget) {
  Harness h(TestConfig(32, /*max_num_seqs=*/8, /*max_tokens=*/100));
  h.Submit(MakeRequest(1, Tokens(50, 1), 1, 20));
  h.Step();
  h.Submit(MakeRequest(2, Tokens(250, 2), 1, 5));
  std::vector<std::pair<int, int>> steps;  // decode rows, tokens
  h.model.on_step = [&](const Batch& b) { steps.emplace_back(b.num_decode, b.num_tokens()); };
  for (int i = 0; i < 4; ++i) h.Step();
  EXPECT_THAT(steps,
              ElementsAre(std::pair(1, 100), std::pair(1, 100), std::pair(1, 53), std::pair(2, 2)));
}

TEST(Scheduling, HigherPriorityIsAdmittedSooner) {
  Harness h(TestConfig(32, /*max_num_seqs=*/1));
  for (int i = 1; i <= 4; ++i) {
    Request r = MakeRequest(i, Tokens(10, i), 1, 3);
    r.priority = i == 3 ? 5 : 0;
    h.Submit(r);
  }
  EXPECT_THAT(DoneOrder(&h), ElementsAre(3, 1, 2, 4));
}

TEST(Scheduling, TheLatestOfTheLowestPriorityIsPreempted) {
  Harness h(TestConfig(/*num_blocks=*/6));
  std::vector<Request> requests;
  for (int i = 1; i <= 3; ++i) requests.push_back(MakeRequest(i, Tokens(60, i), 1, 100));
  requests[1].priority = -1;
  for (const Request& r : requests) h.Submit(r);
  EXPECT_THAT(DoneOrder(&h), ElementsAre(1, 3, 2));
  EXPECT_GT(h.engine->Load().preemptions, 0);
  for (const Request& r : requests) h.ExpectUndisturbed(r);
}

TEST(Scheduling, APreemptedSequenceHitsItsOwnBlocksWhenItComesBack) {
  Harness h(TestConfig(/*num_blocks=*/9));
  const Request a = MakeRequest(1, Tokens(190, 1), 1, 120),
                b = MakeRequest(2, Tokens(190, 2), 1, 120);
  h.Submit(a);
  h.Submit(b);
  h.Drain();
  h.ExpectUndisturbed(a);
  h.ExpectUndisturbed(b);
  EXPECT_GE(h.engine->Load().preemptions, 1);
  EXPECT_LT(h.model.num_computed, 2 * (190 + 119) + 190);  // less than all over again
}

TEST(Scheduling, EqualPromptsThatArriveTogetherAreComputedOnce) {
  Harness h(TestConfig(32, /*max_num_seqs=*/8, /*max_tokens=*/1024));
  for (int i = 1; i <= 4; ++i) h.Submit(MakeRequest(i, Tokens(200), 1, 2));
  h.Drain();
  EXPECT_EQ(h.model.num_computed, 200 + 3 * (200 - 192) + 4);
  EXPECT_EQ(h.acks[4].cached_tokens, 192);
}

TEST(Scheduling, ADeferredPromptDoesNotHoldUpAnotherOne) {
  Harness h(TestConfig(32, /*max_num_seqs=*/8, /*max_tokens=*/512));
  h.Submit(MakeRequest(1, Tokens(200), 1, 2));
  h.Submit(MakeRequest(2, Tokens(200), 1, 2));
  h.Submit(MakeRequest(3, Tokens(100, 9), 1, 2));
  h.Step();
  EXPECT_TRUE(h.acks.contains(3));
  EXPECT_FALSE(h.acks.contains(2));
}

TEST(Scheduling, SamplesOfOnePromptShareOnePrefillAndItsLogits) {
  Harness h(TestConfig(32));
  const Request r = MakeRequest(1, Tokens(100), 6, 10);
  h.model.on_step = [&](const Batch& b) {
    EXPECT_EQ(b.num_seqs(), 1);
    EXPECT_EQ(b.samples.size(), 6u);
    for (int i = 0; i < 6; ++i) {
      EXPECT_EQ(b.samples[i].logits_row, 0);
      EXPECT_EQ(b.samples[i].choice, i);
    }
  };
  h.Submit(r);
  h.Step();
  EXPECT_EQ(h.acks[1].shared_blocks, 1);
  h.model.on_step = [&](const Batch& b) {
    EXPECT_EQ(b.copy_src, std::vector<int32_t>(5, b.copy_src[0]));  // the leader keeps the original
    ASSERT_EQ(b.nodes.size(), 1u);
    EXPECT_EQ(b.nodes[0].key_end, kBlockSize);
    EXPECT_EQ(b.own_begin, std::vector<int32_t>(6, kBlockSize));
  };
  h.Step();
  h.model.on_step = [&](const Batch& b) { EXPECT_TRUE(b.copy_src.empty()); };
  h.Drain();
  h.ExpectUndisturbed(r);
  EXPECT_EQ(h.model.num_computed, 100 + 6 * 9);
}

TEST(Scheduling, APromptOfWholeBlocksIsForkedWithoutACopy) {
  Harness h(TestConfig(32));
  const Request r = MakeRequest(1, Tokens(128), 6, 10);
  h.Submit(r);
  h.Drain();
  h.ExpectUndisturbed(r);
  EXPECT_EQ(h.acks[1].shared_blocks, 2);
  EXPECT_EQ(h.model.num_copies, 0);
}

TEST(Scheduling, ALeaderThatEndsWithItsFirstTokenStillGivesItsBlocksToTheForks) {
  Harness h(TestConfig(32));
  Request r = MakeRequest(1, Tokens(100), 5, 10);
  r.sampling.stop_token_ids = {ExpectedAnswer(r, r.choices[0], TestLimits()).tokens[0]};
  h.Submit(r);
  h.Submit(MakeRequest(2, Tokens(300, 5), 1, 3));  // would take what the leader gave back
  h.Drain();
  h.ExpectUndisturbed(r);
  EXPECT_EQ((h.answers[{1, 0}].tokens.size()), 1u);
}

TEST(Scheduling, AThousandSamplesRunThroughFewRows) {
  Harness h(TestConfig(/*num_blocks=*/200, /*max_num_seqs=*/64, /*max_tokens=*/512));
  const Request r = MakeRequest(1, Tokens(300), 1024, 4);
  h.Submit(r);
  h.Drain();
  h.ExpectUndisturbed(r);
  EXPECT_EQ(h.model.max_rows_seen, 64);
  EXPECT_EQ(h.dones[1].generated_tokens, 4096);
}

TEST(Scheduling, AThousandSamplesSurviveAPoolThatHoldsAFewOfThem) {
  Harness h(TestConfig(/*num_blocks=*/12, /*max_num_seqs=*/64, /*max_tokens=*/512));
  const Request r = MakeRequest(1, Tokens(200), 1024, 70);
  h.Submit(r);
  h.Drain();
  h.ExpectUndisturbed(r);
  EXPECT_GT(h.engine->Load().preemptions, 0);
}

TEST(Scheduling, ResumedChoicesShareTheirPrompt) {
  Harness h(TestConfig(64, /*max_num_seqs=*/8, /*max_tokens=*/1024));
  Request r = MakeRequest(1, Tokens(200), 6, 30);
  for (ChoiceStart& c : r.choices) {
    const Answer whole = ExpectedAnswer(r, c, TestLimits());
    c.emitted.assign(whole.tokens.begin(), whole.tokens.begin() + 2 * c.index);
  }
  h.Submit(r);
  h.Drain();
  h.ExpectUndisturbed(r);
  EXPECT_LT(h.model.num_computed, 200 + 6 * (30 + 20));
}

TEST(Scheduling, RowsNeverExceedTheTokenBudget) {
  Harness h(TestConfig(64, /*max_num_seqs=*/32, /*max_tokens=*/8));
  std::vector<Request> requests;
  for (int i = 1; i <= 20; ++i) requests.push_back(MakeRequest(i, Tokens(30, i), 2, 5));
  for (const Request& r : requests) h.Submit(r);
  h.Drain();  // the fake model checks the budget
  for (const Request& r : requests) h.ExpectUndisturbed(r);
}

}  // namespace
}  // namespace bough::testing
