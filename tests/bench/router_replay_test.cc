// A short replay gates the policy's quality: a change that makes placement worse than simple rules fails.
#include <fstream>
#include <string>
#include <vector>

#include "bench/router_replay_sim.h"
#include "gtest/gtest.h"

namespace bough {
namespace {

ReplayMetrics Played(const ReplayTrace& trace, ReplayRule rule, int num_routers = 1) {
  ReplayOptions options;
  options.rule = rule;
  options.num_groups = 4;
  options.num_routers = num_routers;
  options.group.kv_blocks = 600;
  return Replay(trace, options);
}

ReplayTrace Conversations() {
  return MakeConversations({.num_requests = 600, .requests_per_second = 2}, /*seed=*/3);
}

TEST(RouterReplay, PlacementBeatsSimpleRulesOnConversations) {
  const ReplayTrace trace = Conversations();
  const ReplayMetrics bough = Played(trace, ReplayRule::kBough);
  EXPECT_LT(bough.ttft_mean, 0.5 * Played(trace, ReplayRule::kRoundRobin).ttft_mean);
  EXPECT_LT(bough.ttft_mean, 0.5 * Played(trace, ReplayRule::kLeastRequests).ttft_mean);
  EXPECT_LT(bough.ttft_mean, 0.9 * Played(trace, ReplayRule::kSglang).ttft_mean);
  EXPECT_LT(bough.ttft_mean, 1.05 * Played(trace, ReplayRule::kMinTtft).ttft_mean);
  ReplayOptions options;
  options.num_groups = 4;
  options.group.kv_blocks = 600;
  EXPECT_GT(bough.hit, 0.9 * PooledOracle(trace, options).hit);
}

TEST(RouterReplay, SeveralRoutersPlaceAsWellAsOne) {
  const ReplayTrace trace = Conversations();
  EXPECT_LT(Played(trace, ReplayRule::kBough, 4).ttft_mean,
            1.1 * Played(trace, ReplayRule::kBough, 1).ttft_mean);
}

TEST(RouterReplay, PricingDecodeLowersTheTimePerTokenOfSharedContexts) {
  const ReplayTrace trace = MakeSharedContexts({.num_requests = 1500}, /*seed=*/3);
  ReplayOptions options;
  const double with = Replay(trace, options).tpot_mean;
  options.coefficients.decode_weight = 0;
  EXPECT_LT(with, 0.9 * Replay(trace, options).tpot_mean);
}

TEST(RouterReplay, AdmissionRefusesUnderOverloadAndServesTheRestInTime) {
  const ReplayTrace trace = ScaleTrace(Conversations(), 0, /*load=*/4, 1);
  ReplayOptions options;
  options.num_groups = 4;
  options.admission.emplace();
  options.deadline_seconds = 5;
  const ReplayMetrics m = Replay(trace, options);
  EXPECT_GT(m.rejects, 0.05);
  EXPECT_LT(m.ttft_p99, 1.2 * options.deadline_seconds);
  options.admission.reset();
  EXPECT_GT(Replay(trace, options).ttft_p99, 2 * options.deadline_seconds);
}

TEST(RouterReplay, TheSameSeedGivesTheSameFigures) {
  const ReplayTrace trace = Conversations();
  EXPECT_EQ(Played(trace, ReplayRule::kBough, 4).ttft_mean,
            Played(trace, ReplayRule::kBough, 4).ttft_mean);
}

// One request alone: 1,024 tokens in two chunks of 512 at 7,000 tokens/s, then 9 steps that read the
// weights, the context and the answer so far.
TEST(RouterReplay, AGroupTakesAsLongAsItsModelSays) {
  ReplayTrace trace;
  trace.num_ids = 2;
  trace.requests.push_back({.input_tokens = 1024, .output_tokens = 10, .blocks = {0, 1}});
  ReplayOptions options;
  options.num_groups = 1;
  const ReplayMetrics m = Replay(trace, options);
  EXPECT_NEAR(m.ttft_mean, 1024 / 7000.0, 1e-9);
  EXPECT_NEAR(m.tpot_mean, 0.012 + 1.6e-8 * (1024 + 5), 1e-9);
}

TEST(RouterReplay, AContextThatTwoRequestsShareIsReadOnce) {
  ReplayTrace trace;
  trace.num_ids = 4;
  for (int i = 0; i < 2; ++i) {
    trace.requests.push_back({.arrival = 10.0 * i,
                              .input_tokens = 2048,
                              .output_tokens = 10000,
                              .blocks = {0, 1, 2, 3}});
  }
  ReplayGroup group({}, trace);
  group.Submit(0, 0);
  group.AdvanceTo(10);
  const int64_t alone = group.Load(10).active_unique_blocks;
  group.Submit(1, 10);
  group.AdvanceTo(10.1);
  EXPECT_LT(group.Load(10.1).active_unique_blocks - alone, 2048 / 64);
  EXPECT_EQ(group.num_hit_blocks(), 4);
}

TEST(ReplayCache, TheOldestGoesFirstAndAParentNeverBeforeItsChild) {
  const std::vector<int> chain = {0, 1, 2}, other = {0, 3};
  ReplayCache cache(5, 4);
  ASSERT_TRUE(cache.Reserve(3));
  for (int id : chain) cache.Store(id);
  cache.Unpin(chain);
  cache.Pin(0);
  ASSERT_TRUE(cache.Reserve(1));
  cache.Store(3);
  cache.Unpin(other);
  ASSERT_TRUE(cache.Reserve(1));  // block 2 goes: the deepest of what was used first
  EXPECT_EQ(cache.Match(chain), 2);
  EXPECT_EQ(cache.Match(other), 2);
  ASSERT_TRUE(cache.Reserve(1));
  EXPECT_EQ(cache.Match(chain), 1);
  EXPECT_EQ(cache.Match(other), 2);
  EXPECT_FALSE(cache.Reserve(3));  // only two are idle
}

TEST(ReplayTrace, ReadsMooncakesFormat) {
  const std::string path = ::testing::TempDir() + "/trace.jsonl";
  std::ofstream(path)
      << R"({"timestamp": 3000, "input_length": 600, "output_length": 5, "hash_ids": [7, 9]})"
      << "\n"
      << R"({"timestamp": 0, "input_length": 100, "output_length": 0, "hash_ids": [7]})"
      << "\n";
  const auto trace = ReadReplayTrace(path, 0);
  ASSERT_TRUE(trace.ok());
  ASSERT_EQ(trace->requests.size(), 2u);
  EXPECT_EQ(trace->num_ids, 2);
  EXPECT_EQ(trace->requests[0].input_tokens, 100);  // by arrival
  EXPECT_DOUBLE_EQ(trace->requests[1].arrival, 3);
  EXPECT_EQ(trace->requests[1].blocks.front(), trace->requests[0].blocks.front());
}

TEST(ReplayTrace, SaysWhichLineIsWrong) {
  const std::string path = ::testing::TempDir() + "/bad_trace.jsonl";
  std::ofstream(path)
      << R"({"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [7]})"
      << "\n";
  const auto trace = ReadReplayTrace(path, 0);
  ASSERT_FALSE(trace.ok());
  EXPECT_NE(trace.status().message().find(":1:"), std::string::npos);
}

}  // namespace
}  // namespace bough
