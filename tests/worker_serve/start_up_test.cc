// What a group shows while it starts: the progress bar and the memory plan; and when it reports
// load.

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/load_display.h"
#include "worker/load_pacer.h"
#include "worker/memory_plan.h"

namespace bough {
namespace {

using ::testing::HasSubstr;

TEST(ProgressBar, ShowsTheWholeAndEveryRank) {
  const std::vector<RankProgress> ranks = {{0, "weights", 75, 100}, {1, "weights", 25, 100}};
  EXPECT_EQ(ProgressBar("g0", ranks, absl::Seconds(3)),
            "loading g0  3 s  [###############               ]  50%  rank 0  75%  rank 1  25%");
}

TEST(ProgressBar, IsEmptyWhileTheTotalIsUnknown) {
  EXPECT_THAT(ProgressBar("g0", {{0, "weights", 0, 0}}, absl::ZeroDuration()),
              HasSubstr("]   0%  rank 0   0%"));
}

constexpr int64_t kGiB = 1ll << 30;

// A GPU of 100 GiB, 2 of them in use, for weights of 40.
MemoryPlan OnGpu() {
  return {
      .device = "gpu",
      .ranks = {{.weights = 40 * kGiB, .scratch = kGiB, .free = 98 * kGiB, .total = 100 * kGiB}},
      .block_bytes = 1 << 20,
      .max_model_len = 2048};
}

MemoryPlan OnCpu() {
  return {.device = "cpu",
          .ranks = {{.weights = 3 << 20}},
          .block_bytes = 1 << 19,
          .max_model_len = 2048};
}

TEST(MemoryPlan, LargestBatchIsBoundByWholeBlocksAndByRows) {
  MemoryPlan plan = OnCpu();
  plan.block_bytes = 1 << 20;
  plan.num_blocks = 100;
  EXPECT_EQ(LargestBatch(plan, 2048, 256), 3);  // 32 blocks each
  EXPECT_EQ(LargestBatch(plan, 65, 256), 50);   // 2 blocks each
  EXPECT_EQ(LargestBatch(plan, 1, 16), 16);
}

TEST(MemoryPlan, TheKvCacheTakesWhatTheGpusShareLeaves) {
  const Config config;
  const MemoryPlan plan = PlanMemory(OnGpu(), config);
  EXPECT_EQ(plan.num_blocks, (90 - 2 - 40 - 1) * 1024);
  EXPECT_TRUE(CheckFits(plan, config).ok());
}

TEST(MemoryPlan, ThePoorestRankSetsTheBlocks) {
  MemoryPlan plan = OnGpu();
  plan.ranks.push_back(plan.ranks[0]);
  plan.ranks[1].free -= 10 * kGiB;
  EXPECT_EQ(PlanMemory(plan, Config()).num_blocks, (90 - 2 - 40 - 1 - 10) * 1024);
}

TEST(MemoryPlan, OnTheCpuTheKvCacheIsWhatIsAskedForOrHalfAGiB) {
  Config config;
  EXPECT_EQ(PlanMemory(OnCpu(), config).num_blocks, 1024);
  config.kv_cache_memory_bytes = 50 << 20;
  EXPECT_EQ(PlanMemory(OnCpu(), config).num_blocks, 100);
}

TEST(MemoryPlan, SaysWhichRankHasTooLittle) {
  Config config;
  MemoryPlan plan = OnGpu();
  plan.ranks.push_back(plan.ranks[0]);
  plan.ranks[1].free = 40 * kGiB;
  plan = PlanMemory(plan, config);
  EXPECT_EQ(plan.num_blocks, 0);
  EXPECT_EQ(
      CheckFits(plan, config).message(),
      "does not fit: rank 1 needs 40.00 GiB for weights, 1.00 GiB for scratch and 1.0 MiB for "
      "the KV cache, but has 30.00 GiB (90 % of 100.00 GiB, less 60.00 GiB in use)");
  EXPECT_THAT(MemoryPlanText(plan, config), HasSubstr("fits      no\n"));
}

TEST(MemoryPlan, SaysThatTheKvCacheAskedForIsTooLargeOrTooSmall) {
  Config config;
  config.kv_cache_memory_bytes = 60 * kGiB;
  EXPECT_THAT(std::string(CheckFits(PlanMemory(OnGpu(), config), config).message()),
              HasSubstr("and 60.00 GiB for the KV cache, but has 88.00 GiB"));
  config.kv_cache_memory_bytes = 1000;
  EXPECT_EQ(CheckFits(PlanMemory(OnCpu(), config), config).message(),
            "does not fit: --kv-cache-memory-bytes = 1000 holds no block of 524288 bytes");
}

TEST(MemoryPlan, TextNamesNeedHaveBlocksTokensAndBatch) {
  Config config;
  config.model = "models/demo";
  const std::string text = MemoryPlanText(PlanMemory(OnGpu(), config), config);
  EXPECT_THAT(text,
              HasSubstr("model     models/demo, tp 1, ep 1, weights as stored, KV cache auto"));
  EXPECT_THAT(text, HasSubstr("rank 0    need 88.00 GiB: weights 40.00 GiB, scratch 1.00 GiB, KV "
                              "cache 47.00 GiB\n          have 88.00 GiB (90 % of 100.00 GiB"));
  EXPECT_THAT(text,
              HasSubstr("KV cache  48128 blocks of 64 tokens, 1.0 MiB each: 3080192 tokens\n"));
  EXPECT_THAT(text, HasSubstr("batch     256 sequences of 2048 tokens (the longest)\n"));
  EXPECT_THAT(text, HasSubstr("fits      yes\n"));
}

TEST(MemoryPlan, TextOfACpuSaysNothingOfWhatItHas) {
  Config config;
  const std::string text = MemoryPlanText(PlanMemory(OnCpu(), config), config);
  EXPECT_THAT(text, HasSubstr("rank 0    need 515.0 MiB: weights 3.0 MiB"));
  EXPECT_THAT(text, ::testing::Not(HasSubstr("have")));
}

TEST(LoadPacer, FirstReportIsDueAtOnce) {
  EXPECT_LT(LoadPacer().Due(/*busy=*/false, /*changed=*/false), absl::UnixEpoch());
}

TEST(LoadPacer, ReportsSoonWhenChangedOftenWhenBusyAndRarelyWhenIdle) {
  LoadPacer pacer;
  const absl::Time sent = absl::UnixEpoch() + absl::Seconds(5);
  pacer.Sent(sent);
  EXPECT_EQ(pacer.Due(true, false) - sent, absl::Milliseconds(20));
  EXPECT_EQ(pacer.Due(true, true) - sent, absl::Milliseconds(5));
  EXPECT_EQ(pacer.Due(false, true) - sent, absl::Milliseconds(5));
  EXPECT_EQ(pacer.Due(false, false) - sent, absl::Milliseconds(100));
}

}  // namespace
}  // namespace bough
