// What a request's sender sees: acks, tokens, the one Done, load.
#include "worker/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <thread>

#include "tests/worker/engine_harness.h"

namespace bough::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class EngineTest : public ::testing::Test {
 protected:
  // Submits and steps once.
  DoneEvent Refusal(const Request& r) {
    h.Submit(r);
    h.Step();
    const auto it = h.dones.find(r.key.handle);
    return it == h.dones.end() ? DoneEvent{} : it->second;
  }

  Harness h{TestConfig(/*num_blocks=*/16)};
};

TEST_F(EngineTest, AnIdleEngineDoesNothing) {
  EXPECT_FALSE(h.engine->WaitForWork(absl::ZeroDuration()));
  EXPECT_EQ(h.Step(), std::nullopt);
  h.engine->Cancel({1, 99}, -1);  // unknown: ignored
  EXPECT_TRUE(h.engine->WaitForWork(absl::ZeroDuration()));
  h.Step();
  EXPECT_THAT(h.dones, IsEmpty());
  EXPECT_EQ(h.model.num_steps, 0);
}

TEST_F(EngineTest, AnswersWithTheModelsTokens) {
  const Request r = MakeRequest(1, Tokens(100), 1, 20);
  h.Submit(r);
  h.Drain();
  h.ExpectUndisturbed(r);
  const DoneEvent& done = h.dones[1];
  EXPECT_EQ(done.request_id, "r1");
  EXPECT_EQ(done.prompt_tokens, 100);
  EXPECT_EQ(done.generated_tokens, 20);
  EXPECT_EQ(h.model.num_steps, 20);
}

TEST_F(EngineTest, TimesEachStage) {
  h.Submit(MakeRequest(1, Tokens(200), 1, 3));  // 128 + 72 tokens, then two decode steps
  h.now += absl::Milliseconds(5);
  h.Drain();
  EXPECT_EQ(h.acks[1].queued, absl::Milliseconds(5));
  EXPECT_EQ(h.dones[1].queue_time, absl::Milliseconds(5));
  EXPECT_EQ(h.dones[1].prefill_time, absl::Milliseconds(20));
  EXPECT_EQ(h.dones[1].decode_time, absl::Milliseconds(20));
}

TEST_F(EngineTest, FinishesAtEosUnlessIgnored) {
  Request r = MakeRequest(1, Tokens(10), 4, 400);
  r.sampling.ignore_eos = false;
  h.Submit(r);
  h.Drain();
  h.ExpectUndisturbed(r);
  const Answer& answer = h.answers[{1, 0}];
  EXPECT_EQ(answer.finish, Finish::kEos);
  EXPECT_EQ(answer.tokens.back(), TestLimits().eos_token_id);
}

TEST_F(EngineTest, FinishesAtAStopToken) {
  Request r = MakeRequest(1, Tokens(10), 2, 400);
  r.sampling.stop_token_ids = {40, 41, 42, 43, 44};
  h.Submit(r);
  h.Drain();
  h.ExpectUndisturbed(r);
  EXPECT_EQ((h.answers[{1, 0}].finish), Finish::kStopToken);
}

TEST_F(EngineTest, BansStopsBeforeMinTokens) {
  Request r = MakeRequest(1, Tokens(10), 1, 300);
  r.sampling.ignore_eos = false;
  for (int i = 10; i < 60; ++i) r.sampling.stop_token_ids.push_back(i);
  r.sampling.min_tokens = 100;
  h.Submit(r);
  h.Drain();
  h.ExpectUndisturbed(r);
  EXPECT_GT((h.answers[{1, 0}].tokens.size()), 100u);
}

TEST_F(EngineTest, SendsLogprobsOnlyWhereAsked) {
  Request with = MakeRequest(1, Tokens(10), 1, 1), without = MakeRequest(2, Tokens(20), 1, 1);
  with.sampling.logprobs = 2;
  h.Submit(with);
  h.Submit(without);
  const auto events = h.Step();
  ASSERT_EQ(events->tokens.size(), 2u);
  EXPECT_EQ(events->tokens[0].logprob, -0.5f);
  EXPECT_THAT(events->tokens[0].top_ids, ElementsAre(0, 1));
  EXPECT_THAT(events->tokens[0].top_logprobs, ElementsAre(-1, -2));
  EXPECT_THAT(events->tokens[1].top_ids, IsEmpty());
}

TEST_F(EngineTest, ASecondEqualPromptHitsAllBlocksBeforeItsLastToken) {
  h.Submit(MakeRequest(1, Tokens(128), 1, 2));
  h.Drain();
  h.Submit(MakeRequest(2, Tokens(128), 1, 2));
  h.Drain();
  h.Submit(MakeRequest(3, Tokens(129), 1, 2));
  h.Drain();
  EXPECT_EQ(h.acks[1].cached_tokens, 0);
  EXPECT_EQ(h.acks[2].cached_tokens, 64);  // a token must be computed to have logits
  EXPECT_EQ(h.acks[3].cached_tokens, 128);
  EXPECT_EQ(h.cached.size(), 2u);
}

TEST_F(EngineTest, TenantsWithOtherSaltsShareNothing) {
  h.Submit(MakeRequest(1, Tokens(129), 1, 2));
  h.Drain();
  Request r = MakeRequest(2, Tokens(129), 1, 2);
  r.cache_salt = "other";
  h.Submit(r);
  h.Drain();
  EXPECT_EQ(h.acks[2].cached_tokens, 0);
}

TEST(Engine, WithoutPrefixCachingRequestsShareNothingButChoicesDo) {
  EngineConfig config = TestConfig(16);
  config.enable_prefix_caching = false;
  Harness h(config);
  h.Submit(MakeRequest(1, Tokens(129), 1, 2));
  h.Drain();
  const int64_t computed = h.model.num_computed;
  h.Submit(MakeRequest(2, Tokens(129), 4, 2));
  h.Drain();
  EXPECT_EQ(h.acks[2].cached_tokens, 0);
  EXPECT_EQ(h.model.num_computed - computed, 129 + 4);
  EXPECT_THAT(h.cached, IsEmpty());
}

TEST_F(EngineTest, CancelFreesTheBlocksAtTheNextStep) {
  h.Submit(MakeRequest(1, Tokens(100), 3, 100));
  h.Step();
  h.Step();
  EXPECT_GT(h.engine->Load().used_blocks, 0);
  h.engine->Cancel({1, 1}, -1);
  h.Step();
  EXPECT_EQ(h.dones[1].reason, "CANCELLED");
  EXPECT_EQ(h.dones[1].status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(h.engine->Load().used_blocks, 0);
}

TEST_F(EngineTest, CancelOfAChoiceEndsThatChoiceOnly) {
  h.Submit(MakeRequest(1, Tokens(10), 2, 5));
  h.Step();
  h.engine->Cancel({1, 1}, 1);
  h.Drain();
  EXPECT_EQ((h.answers[{1, 0}].tokens.size()), 5u);
  EXPECT_EQ((h.answers[{1, 1}].tokens.size()), 1u);
  EXPECT_TRUE(h.dones[1].status.ok());
  EXPECT_EQ(h.dones[1].generated_tokens, 6);
}

TEST_F(EngineTest, CancelOfEveryChoiceIsAGoodEnd) {
  h.Submit(MakeRequest(1, Tokens(10), 2, 50));
  h.Step();
  h.engine->Cancel({1, 1}, 0);
  h.engine->Cancel({1, 1}, 1);
  h.Step();
  EXPECT_TRUE(h.dones.at(1).status.ok());
}

TEST_F(EngineTest, ALinkThatIsGoneTakesItsRequestsAlong) {
  Request other = MakeRequest(2, Tokens(10), 1, 5);
  other.key.link = 2;
  h.Submit(MakeRequest(1, Tokens(10), 1, 5));
  h.Submit(other);
  h.engine->CancelLink(1);
  h.Drain();
  EXPECT_EQ(h.dones[1].reason, "CANCELLED");
  h.ExpectUndisturbed(other);
}

TEST_F(EngineTest, ADeadlineNamesTheStageInWhichItPassed) {
  Request queued = MakeRequest(1, Tokens(10), 1, 5);
  queued.deadline = h.now;
  Request prefilling = MakeRequest(2, Tokens(300), 1, 5);
  prefilling.deadline = h.now + absl::Milliseconds(10);
  h.Submit(queued);
  h.Submit(prefilling);
  h.Step();
  h.Step();
  Request decoding = MakeRequest(3, Tokens(10), 1, 500);
  decoding.deadline = h.now + absl::Milliseconds(50);
  h.Submit(decoding);
  h.Drain();
  EXPECT_EQ(h.dones[1].stage, "queue");
  EXPECT_EQ(h.dones[2].stage, "prefill");
  EXPECT_EQ(h.dones[3].stage, "decode");
  EXPECT_EQ(h.dones[3].generated_tokens, 5);
  for (int i = 1; i <= 3; ++i) {
    EXPECT_EQ(h.dones[i].reason, "DEADLINE");
    EXPECT_EQ(h.dones[i].status.code(), absl::StatusCode::kDeadlineExceeded);
  }
}

TEST_F(EngineTest, DrainingRefusesNewRequestsAndFinishesOldOnes) {
  const Request old = MakeRequest(1, Tokens(10), 1, 5);
  h.Submit(old);
  h.engine->SetDraining(true);
  h.Submit(MakeRequest(2, Tokens(10), 1, 5));
  h.Drain();
  h.ExpectUndisturbed(old);
  EXPECT_EQ(h.dones[2].reason, "DRAINING");
  EXPECT_EQ(h.dones[2].status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(h.engine->Load().draining);
}

TEST(Engine, AFullQueueRefuses) {
  EngineConfig config = TestConfig(16);
  config.max_waiting = 2;
  Harness h(config);
  for (int i = 1; i <= 3; ++i) h.Submit(MakeRequest(i, Tokens(10), 1, 5));
  h.Drain();
  EXPECT_TRUE(h.dones[2].status.ok());
  EXPECT_EQ(h.dones[3].reason, "QUEUE_FULL");
  EXPECT_EQ(h.dones[3].status, absl::ResourceExhaustedError("2 requests wait, the limit is 2"));
}

TEST_F(EngineTest, RefusesBadRequestsNamingFieldLimitAndValue) {
  struct Case {
    const char* expected;
    std::function<void(Request*)> spoil;
  };
  const Case cases[] = {
      {"prompt: must have at least 1 token", [](Request* r) { r->prompt_ids.clear(); }},
      {"[0, 96], is 97", [](Request* r) { r->prompt_ids[3] = 97; }},
      {"sampling.n: must be in [1, 1024], is 0", [](Request* r) { r->choices.clear(); }},
      {"sampling.temperature",
       [](Request* r) { r->sampling.temperature = std::numeric_limits<float>::quiet_NaN(); }},
      {"choices[0].index: must be in [0, 1023], is 1024",
       [](Request* r) { r->choices[0].index = 1024; }},
      {"choices[1].index: must not repeat, 0 stands before",
       [](Request* r) {
         r->choices.push_back({0, {}});
       }},
      {"choices[0].emitted_ids: must have at most max_tokens - 1 = 4 tokens, has 5",
       [](Request* r) {
         r->choices[0].emitted = {1, 1, 1, 1, 1};
       }},
      {"choices[0].emitted_ids[1]: must be in [0, 96], is -1",
       [](Request* r) {
         r->choices[0].emitted = {1, -1};
       }},
  };
  uint64_t handle = 0;
  for (const Case& c : cases) {
    Request r = MakeRequest(++handle, Tokens(10), 1, 5);
    c.spoil(&r);
    const DoneEvent done = Refusal(r);
    EXPECT_EQ(done.status.code(), absl::StatusCode::kInvalidArgument) << c.expected;
    EXPECT_EQ(done.reason, "INVALID");
    EXPECT_FALSE(done.violations.empty());
    EXPECT_THAT(std::string(done.status.message()), HasSubstr(c.expected));
  }
  EXPECT_EQ(h.model.num_steps, 0);
}

TEST(Engine, RefusesWhatThePoolCanNeverHoldAndServesWhatItJustCan) {
  Harness h(TestConfig(/*num_blocks=*/3));
  const Request fits = MakeRequest(1, Tokens(100), 1, 93);  // the last token needs no room
  h.Submit(fits);
  h.Submit(MakeRequest(2, Tokens(100), 1, 94));
  h.Drain();
  h.ExpectUndisturbed(fits);
  EXPECT_EQ(h.dones[2].reason, "INVALID");
  EXPECT_THAT(std::string(h.dones[2].status.message()),
              HasSubstr("100 + 94 tokens need 4 KV blocks of 64 tokens, this group has 3"));
}

TEST_F(EngineTest, RefusesAHandleInUseWithoutHarmToItsOwner) {
  const Request first = MakeRequest(1, Tokens(10), 1, 5);
  h.Submit(first);
  h.engine->Submit(first);
  h.Step();
  EXPECT_EQ(h.dones[1].reason, "INVALID");
  EXPECT_THAT(std::string(h.dones[1].status.message()), HasSubstr("must not be in use, 1 is"));
  h.dones.clear();
  h.Drain();
  h.ExpectUndisturbed(first);
}

TEST_F(EngineTest, AResumedChoiceGoesOnAfterWhatWasEmitted) {
  Request r = MakeRequest(1, Tokens(100), 3, 30);
  const Answer whole = ExpectedAnswer(r, r.choices[1], TestLimits());
  r.choices[1].emitted.assign(whole.tokens.begin(), whole.tokens.begin() + 12);
  h.Submit(r);
  h.Drain();
  h.ExpectUndisturbed(r);
  EXPECT_EQ(h.dones[1].generated_tokens, 30 + 18 + 30);
}

TEST_F(EngineTest, PenaltiesSeePromptAndAnswer) {
  Request r = MakeRequest(1, {7, 7, 3}, 1, 3);
  r.sampling.frequency_penalty = 0.5f;
  std::vector<std::vector<int32_t>> ids;
  std::vector<int32_t> total;
  h.model.on_step = [&](const Batch& b) {
    ids.push_back(b.seen_ids);
    total.push_back(0);
    for (int32_t count : b.seen_counts) total.back() += count;
  };
  h.Submit(r);
  h.Drain();
  EXPECT_THAT(ids[0], ElementsAre(3, 7));
  EXPECT_THAT(total, ElementsAre(0, 1, 2));
}

TEST_F(EngineTest, OneCopyOfTheLogitBiasServesAllChoices) {
  Request r = MakeRequest(1, Tokens(5), 4, 3);
  r.sampling.logit_bias = {{5, 1.0f}, {6, -2.0f}};
  h.model.on_step = [&](const Batch& b) {
    EXPECT_THAT(b.bias_ids, ElementsAre(5, 6));
    for (const SamplingRow& s : b.samples) EXPECT_EQ(s.bias_end - s.bias_begin, 2);
  };
  h.Submit(r);
  h.Drain();
}

TEST_F(EngineTest, LoadSaysWhatWaitsAndHowLongItWillTake) {
  for (int i = 0; i < 30; ++i) {  // lets it learn: 10 ms a step
    h.Submit(MakeRequest(100 + i, Tokens(64 + i, i), 1, 2));
    h.Drain();
  }
  h.Submit(MakeRequest(1, Tokens(300, 77), 1, 5));
  h.Submit(MakeRequest(2, Tokens(200, 78), 1, 5));
  h.Step();
  const LoadReport load = h.engine->Load();
  EXPECT_EQ(load.running, 1);
  EXPECT_EQ(load.waiting, 1);
  EXPECT_EQ(load.used_blocks, 5);
  EXPECT_EQ(load.active_unique_blocks, 5);
  EXPECT_EQ(load.free_blocks + load.cached_blocks + load.used_blocks, 16);
  EXPECT_NEAR(load.drain_seconds, 0.03, 0.01);  // 172 + 200 tokens in steps of 128
  EXPECT_NEAR(load.decode_step_seconds + 128 * load.prefill_seconds_per_token, 0.01, 1e-3);
}

TEST_F(EngineTest, StepEventsCountTheStepsWork) {
  h.Submit(MakeRequest(1, Tokens(100), 4, 10));
  const auto first = h.Step();
  EXPECT_EQ(first->prefill_tokens, 100);
  EXPECT_EQ(first->decode_rows, 0);
  EXPECT_EQ(first->step_time, absl::Milliseconds(10));
  const auto second = h.Step();
  EXPECT_EQ(second->prefill_tokens, 0);
  EXPECT_EQ(second->decode_rows, 4);
  EXPECT_EQ(second->shared_prefix_rows, 4);
}

TEST_F(EngineTest, TakesRequestsFromOtherThreadsWhileItSteps) {
  h.model.on_wait = nullptr;  // the clock, which Submit reads, stands still
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < 50; ++i) {
        const auto handle = static_cast<uint64_t>(t * 100 + i);
        h.engine->Submit(MakeRequest(handle, {1, 2, 3}, 1, 2));
        if (i % 5 == 0) h.engine->Cancel({1, handle}, -1);
      }
    });
  }
  int num_done = 0;
  while (num_done < 200) {
    ASSERT_TRUE(h.engine->WaitForWork(absl::Seconds(30)));
    if (const auto events = h.engine->Step(absl::UnixEpoch())) {
      num_done += static_cast<int>(events->dones.size());
    }
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(num_done, 200);
  EXPECT_EQ(h.engine->Load().used_blocks, 0);
}

}  // namespace
}  // namespace bough::testing
