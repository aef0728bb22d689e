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

TEST(MemoryPlan, LargestBatchIsBoundByWholeBlocksAndByRows) {
  const MemoryPlan plan = {
      .weight_bytes = {1 << 20}, .block_bytes = 1 << 20, .num_blocks = 100, .max_model_len = 2048};
  EXPECT_EQ(LargestBatch(plan, 2048, 256), 3);  // 32 blocks each
  EXPECT_EQ(LargestBatch(plan, 65, 256), 50);   // 2 blocks each
  EXPECT_EQ(LargestBatch(plan, 1, 16), 16);
}

TEST(MemoryPlan, TextNamesBytesBlocksTokensAndBatch) {
  Config config;
  config.model = "models/demo";
  const std::string text = MemoryPlanText(
      {.weight_bytes = {3 << 20}, .block_bytes = 1 << 19, .num_blocks = 100, .max_model_len = 2048},
      config);
  EXPECT_THAT(text, HasSubstr("weights   3.0 MiB on rank 0\n"));
  EXPECT_THAT(text, HasSubstr("50.0 MiB per rank: 100 blocks of 64 tokens, 0.50 MiB each\n"));
  EXPECT_THAT(text, HasSubstr("tokens    6400\n"));
  EXPECT_THAT(text, HasSubstr("batch     3 sequences of 2048 tokens (the longest)\n"));
}

TEST(LoadPacer, FirstReportIsDueAtOnce) {
  EXPECT_LT(LoadPacer().Due(/*busy=*/false, /*changed=*/false), absl::UnixEpoch());
}

TEST(LoadPacer, ReportsOftenWhenBusySoonWhenChangedAndRarelyWhenIdle) {
  LoadPacer pacer;
  const absl::Time sent = absl::UnixEpoch() + absl::Seconds(5);
  pacer.Sent(sent);
  EXPECT_EQ(pacer.Due(true, false) - sent, absl::Milliseconds(5));
  EXPECT_EQ(pacer.Due(true, true) - sent, absl::Milliseconds(5));
  EXPECT_EQ(pacer.Due(false, true) - sent, absl::Milliseconds(10));
  EXPECT_EQ(pacer.Due(false, false) - sent, absl::Milliseconds(100));
}

}  // namespace
}  // namespace bough
