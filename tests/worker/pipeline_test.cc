// Two steps in flight: the next one is planned and launched before the result of the last is known.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "tests/worker/engine_harness.h"

namespace bough::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

class PipelineTest : public ::testing::Test {
 protected:
  Harness h{TestConfig(/*num_blocks=*/16), /*max_in_flight=*/2};
};

TEST_F(PipelineTest, LaunchesTheNextStepBeforeItWaitsAndNoneAfterTheLastToken) {
  std::string calls;
  h.model.on_step = [&](const Batch&) { calls += 'L'; };
  h.model.on_wait = [&] { calls += 'W'; };
  const Request r = MakeRequest(1, Tokens(100), 1, 4);
  h.Submit(r);
  h.Drain();
  h.ExpectUndisturbed(r);
  EXPECT_EQ(calls, "LLWLWLWW");
}

TEST_F(PipelineTest, ARowGoesOnFromTheRowThatSamplesItsToken) {
  const Request r = MakeRequest(1, Tokens(100), 3, 4);
  std::vector<std::vector<int32_t>> tokens;
  h.model.on_step = [&](const Batch& b) {
    tokens.push_back(b.tokens);
    for (const SamplingRow& s : b.samples)
      EXPECT_EQ(s.position, static_cast<int>(tokens.size()) - 1);
  };
  h.Submit(r);
  h.Drain();
  h.ExpectUndisturbed(r);
  ASSERT_THAT(tokens, SizeIs(4));
  EXPECT_EQ(tokens[0], r.prompt_ids);
  for (int i = 1; i < 4; ++i) EXPECT_THAT(tokens[i], UnorderedElementsAre(-1, -2, -3));
}

TEST(Pipeline, WithOneStepInFlightEveryTokenIsKnown) {
  Harness h(TestConfig(16), /*max_in_flight=*/1);
  h.model.on_step = [](const Batch& b) { EXPECT_GE(*std::ranges::min_element(b.tokens), 0); };
  h.Submit(MakeRequest(1, Tokens(100), 3, 4));
  h.Drain();
}

TEST_F(PipelineTest, AfterAStopTheRowInFlightIsDropped) {
  Request r = MakeRequest(1, Tokens(100), 1, 10);
  const int32_t stop = ExpectedAnswer(r, r.choices[0], TestLimits()).tokens[2];
  r.sampling.stop_token_ids = {stop};
  h.Submit(r);
  h.Drain();
  h.ExpectUndisturbed(r);
  const int num_tokens = static_cast<int>(h.answers[{1, 0}].tokens.size());
  EXPECT_EQ(h.model.num_steps, num_tokens + 1);
  EXPECT_EQ(h.dones[1].generated_tokens, num_tokens);
}

TEST_F(PipelineTest, BlocksOfAStoppedSequenceGoToTheNextOneWhileItsLastRowIsInFlight) {
  Harness small(TestConfig(/*num_blocks=*/2), /*max_in_flight=*/2);
  Request first = MakeRequest(1, Tokens(100), 1, 10);
  first.sampling.stop_token_ids = {ExpectedAnswer(first, first.choices[0], TestLimits()).tokens[2]};
  const Request second = MakeRequest(2, Tokens(90, 5), 1, 10);
  small.Submit(first);
  small.Submit(second);
  bool was_reused = false;
  while (const auto events = small.Step()) {
    was_reused |= small.acks.contains(2) && small.model.num_in_flight() > 0 &&
                  small.dones.contains(1) && !events->acks.empty();
  }
  small.ExpectUndisturbed(first);
  small.ExpectUndisturbed(second);
  EXPECT_TRUE(was_reused);
}

TEST_F(PipelineTest, PenaltiesWaitForTheTokenAndHoldUpNobodyElse) {
  Request penalised = MakeRequest(1, Tokens(50, 1), 1, 6);
  penalised.sampling.presence_penalty = 1;
  const Request plain = MakeRequest(2, Tokens(50, 2), 1, 6);
  std::vector<size_t> rows;
  h.model.on_step = [&](const Batch& b) { rows.push_back(b.samples.size()); };
  h.Submit(penalised);
  h.Submit(plain);
  h.Drain();
  h.ExpectUndisturbed(penalised);
  h.ExpectUndisturbed(plain);
  // Both prefill; then the plain one in each step, the other in every second. Alone, the latter has
  // one step in flight.
  EXPECT_THAT(rows, ElementsAre(2, 1, 2, 1, 2, 1, 1, 1, 1));
}

TEST_F(PipelineTest, ACancelledRequestsTokensInFlightAreDropped) {
  h.Submit(MakeRequest(1, Tokens(10), 2, 50));
  h.Step();
  EXPECT_EQ(h.model.num_in_flight(), 1);
  h.engine->Cancel({1, 1}, -1);
  h.Step();
  EXPECT_EQ(h.dones[1].reason, "CANCELLED");
  EXPECT_EQ(h.model.num_in_flight(), 0);
  EXPECT_THAT(h.answers, IsEmpty());
  EXPECT_FALSE(h.engine->WaitForWork(absl::ZeroDuration()));
  EXPECT_EQ(h.Step(), std::nullopt);
}

TEST_F(PipelineTest, IsNotIdleWhileAStepIsInFlight) {
  Request r = MakeRequest(1, Tokens(10), 1, 50);
  r.sampling.stop_token_ids = {ExpectedAnswer(r, r.choices[0], TestLimits()).tokens[0]};
  h.Submit(r);
  h.Step();
  h.Step();
  EXPECT_TRUE(h.dones.contains(1));
  EXPECT_EQ(h.model.num_in_flight(), 1);  // the superfluous row
  EXPECT_TRUE(h.engine->WaitForWork(absl::ZeroDuration()));
  EXPECT_TRUE(h.Step().has_value());
  EXPECT_EQ(h.Step(), std::nullopt);
}

TEST_F(PipelineTest, TheTokenInFlightOfAPreemptedSequenceCounts) {
  Harness small(TestConfig(/*num_blocks=*/5), /*max_in_flight=*/2);
  const Request a = MakeRequest(1, Tokens(110, 1), 1, 60),
                b = MakeRequest(2, Tokens(110, 2), 1, 60);
  small.Submit(a);
  small.Submit(b);
  while (small.engine->Load().preemptions == 0) {
    const size_t before = small.answers[{2, 0}].tokens.size();
    ASSERT_TRUE(small.Step().has_value());
    if (small.engine->Load().preemptions == 0) continue;
    EXPECT_EQ((small.answers[{2, 0}].tokens.size()), before + 1);
  }
  small.Drain();
  small.ExpectUndisturbed(a);
  small.ExpectUndisturbed(b);
}

TEST_F(PipelineTest, ABlockEntersTheCacheWhenItsLastTokenIsKnown) {
  h.Submit(MakeRequest(1, Tokens(60), 1, 20));
  size_t num_tokens = 0;
  while (h.cached.empty()) {
    ASSERT_TRUE(h.Step().has_value());
    num_tokens = h.answers[{1, 0}].tokens.size();
  }
  EXPECT_EQ(num_tokens,
            4u);  // the fourth is the block's last; the step that computes it is launched
  h.Drain();
}

TEST_F(PipelineTest, StepTimeIsSinceTheResultBefore) {
  h.Submit(MakeRequest(1, Tokens(100), 1, 10));
  EXPECT_EQ(h.Step()->step_time, absl::ZeroDuration());  // no result yet
  h.now += absl::Milliseconds(4);
  const auto first = h.Step();  // launched 4 ms ago, waited for 10
  EXPECT_EQ(first->step_time, absl::Milliseconds(14));
  EXPECT_EQ(first->prefill_tokens, 100);
  const auto second = h.Step();
  EXPECT_EQ(second->step_time, absl::Milliseconds(10));
  EXPECT_EQ(second->prefill_tokens, 0);
  EXPECT_EQ(second->decode_rows, 1);
}

TEST_F(PipelineTest, AnEngineThatIsDestroyedWaitsForItsSteps) {
  h.Submit(MakeRequest(1, Tokens(100), 1, 10));
  h.Step();
  EXPECT_EQ(h.model.num_in_flight(), 1);
  h.engine.reset();
  EXPECT_EQ(h.model.num_in_flight(), 0);
}

TEST_F(PipelineTest, AThousandSamplesSurviveAPoolThatHoldsAFewOfThem) {
  Harness crowd(TestConfig(/*num_blocks=*/12, /*max_num_seqs=*/64, /*max_tokens=*/512), 2);
  const Request r = MakeRequest(1, Tokens(200), 1024, 70);
  crowd.Submit(r);
  crowd.Drain();
  crowd.ExpectUndisturbed(r);
  EXPECT_GT(crowd.engine->Load().preemptions, 0);
}

}  // namespace
}  // namespace bough::testing
