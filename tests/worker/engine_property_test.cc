// Random traces in tiny pools: whatever is preempted, evicted, forked, cancelled or resumed, every
// token is the one of an undisturbed run, with one step in flight or with two.
#include <gtest/gtest.h>

#include <random>

#include "tests/worker/engine_harness.h"

namespace bough::testing {
namespace {

struct Totals {
  int64_t preemptions = 0, copies = 0, shared_rows = 0, cached_tokens = 0, removed = 0;
  int64_t resolved = 0, superfluous = 0;
  int expired = 0, cancelled = 0, finished = 0;
};

class Trace {
 public:
  Trace(uint32_t seed, int max_in_flight) : rng_(seed), harness_(RandomConfig(), max_in_flight) {
    harness_.model.on_step = [this](const Batch& b) { num_sampled_ += b.samples.size(); };
  }

  void Run(Totals* totals) {
    const int num_requests = Pick(3, 14);
    for (int i = 0; i < num_requests; ++i) {
      requests_.push_back(RandomRequest(i + 1));
      harness_.Submit(requests_.back());
      for (int steps = Pick(0, 6); steps > 0; --steps) Step(totals);
      if (Pick(0, 5) == 0) CancelOne();
    }
    while (Step(totals)) {
    }
    harness_.Drain();
    Verify(totals);
    totals->preemptions += harness_.engine->Load().preemptions;
    totals->copies += harness_.model.num_copies;
    totals->shared_rows += harness_.model.num_shared_rows;
    totals->resolved += harness_.model.num_resolved;
    totals->superfluous += num_sampled_;
    for (const auto& [choice, answer] : harness_.answers) {
      totals->superfluous -= static_cast<int64_t>(answer.tokens.size());
    }
  }

 private:
  int Pick(int lo, int hi) { return std::uniform_int_distribution<int>(lo, hi)(rng_); }

  EngineConfig RandomConfig() {
    const int max_num_seqs = Pick(1, 10);
    EngineConfig config = TestConfig(Pick(5, 24), max_num_seqs, max_num_seqs + Pick(0, 150));
    config.enable_prefix_caching = Pick(0, 9) > 0;
    return config;
  }

  Request RandomRequest(int handle) {
    const int room = harness_.config_.num_blocks * kBlockSize;
    const int num_prompt = Pick(0, 2) == 0 ? kBlockSize * Pick(1, 3) : Pick(1, 250);
    const int max_tokens = Pick(0, 3) == 0 ? 1 : Pick(1, std::min(150, room - num_prompt + 1));
    Request r = MakeRequest(handle, Tokens(num_prompt, Pick(0, 2)), Pick(0, 1) ? Pick(2, 12) : 1,
                            max_tokens);
    r.sampling.ignore_eos = Pick(0, 1) == 0;
    r.sampling.min_tokens = Pick(0, 1) == 0 ? 0 : Pick(0, max_tokens);
    if (Pick(0, 3) == 0) r.sampling.stop_token_ids = {5, 50};
    if (Pick(0, 3) == 0) r.sampling.frequency_penalty = 1;
    if (Pick(0, 7) == 0) r.sampling.repetition_penalty = 1.5f;
    if (Pick(0, 3) == 0) r.cache_salt = "other tenant";
    r.priority = Pick(-1, 1);
    if (Pick(0, 6) == 0) r.deadline = harness_.now + absl::Milliseconds(Pick(0, 600));
    if (Pick(0, 2) == 0) StartInTheMiddle(&r);
    return r;
  }

  // As if another group had died after a part of each answer.
  void StartInTheMiddle(Request* r) {
    std::vector<ChoiceStart> rest;
    for (ChoiceStart& choice : r->choices) {
      const Answer whole = ExpectedAnswer(*r, choice, harness_.config_.limits);
      const int num_emitted = Pick(0, static_cast<int>(whole.tokens.size()) - 1);
      choice.emitted.assign(whole.tokens.begin(), whole.tokens.begin() + num_emitted);
      if (Pick(0, 3) > 0 || rest.empty()) rest.push_back(choice);
    }
    r->choices = rest;
  }

  void CancelOne() {
    const Request& r = requests_[Pick(0, static_cast<int>(requests_.size()) - 1)];
    const int choice = Pick(0, 1) ? -1 : Pick(0, 3);
    harness_.engine->Cancel(r.key, choice);
    cancelled_.insert({r.key.handle, choice});
  }

  bool Step(Totals* totals) {
    const auto events = harness_.Step();
    if (!events) return false;
    totals->removed += static_cast<int64_t>(events->cache.removed.size());
    return true;
  }

  void Verify(Totals* totals) {
    EXPECT_EQ(harness_.dones.size(), requests_.size());
    for (const Request& r : requests_) {
      const DoneEvent& done = harness_.dones[r.key.handle];
      totals->cached_tokens += done.cached_tokens;
      if (done.reason == "DEADLINE") ++totals->expired;
      if (done.reason == "CANCELLED") ++totals->cancelled;
      if (done.reason.empty()) ++totals->finished;
      EXPECT_TRUE(done.reason.empty() || done.reason == "DEADLINE" || done.reason == "CANCELLED")
          << done.status;
      int num_generated = 0;
      for (const ChoiceStart& choice : r.choices) {
        const Answer& got = harness_.answers[{r.key.handle, choice.index}];
        const Answer expected = ExpectedAnswer(r, choice, harness_.config_.limits);
        num_generated += static_cast<int>(got.tokens.size());
        const auto begin = expected.tokens.begin() + choice.emitted.size();
        ASSERT_LE(got.tokens.size(), expected.tokens.size() - choice.emitted.size());
        EXPECT_TRUE(std::equal(got.tokens.begin(), got.tokens.end(), begin))
            << "request " << r.key.handle << " choice " << choice.index;
        if (done.reason.empty() && !cancelled_.contains({r.key.handle, choice.index})) {
          EXPECT_EQ(got.finish, expected.finish);
          EXPECT_EQ(choice.emitted.size() + got.tokens.size(), expected.tokens.size());
        }
      }
      EXPECT_EQ(done.generated_tokens, num_generated);
    }
  }

  std::mt19937 rng_;
  Harness harness_;
  std::vector<Request> requests_;
  std::set<std::pair<uint64_t, int32_t>> cancelled_;
  int64_t num_sampled_ = 0;
};

class EngineProperty : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(StepsInFlight, EngineProperty, ::testing::Values(1, 2));

TEST_P(EngineProperty, EveryTokenIsThatOfAnUndisturbedRun) {
  Totals totals;
  for (uint32_t seed = 0; seed < 2000 && !::testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    Trace(seed, GetParam()).Run(&totals);
  }
  // The traces went where it is hard.
  EXPECT_GT(totals.preemptions, 500);
  EXPECT_GT(totals.copies, 1000);
  EXPECT_GT(totals.shared_rows, 1000);
  EXPECT_GT(totals.cached_tokens, 1000);
  EXPECT_GT(totals.removed, 1000);
  EXPECT_GT(totals.expired, 100);
  EXPECT_GT(totals.cancelled, 100);
  EXPECT_GT(totals.finished, 1000);
  if (GetParam() == 1) {
    EXPECT_EQ(totals.resolved, 0);
    EXPECT_EQ(totals.superfluous, 0);  // every sampled token is handed out
  } else {
    EXPECT_GT(totals.resolved, 100000);
    EXPECT_GT(totals.superfluous, 1000);
  }
}

}  // namespace
}  // namespace bough::testing
