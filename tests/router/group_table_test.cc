#include "router/group_table.h"

#include <numeric>
#include <vector>

#include "gtest/gtest.h"

namespace bough::router {
namespace {

const absl::Time kNow = absl::UnixEpoch();

GroupHello Hello(uint64_t epoch, bool ready = true) {
  GroupHello hello;
  hello.epoch = epoch;
  hello.ready = ready;
  hello.model_key = "m";
  hello.block_size = kBlockSize;
  hello.total_blocks = 100;
  return hello;
}

std::vector<BlockHash> Hashes(int n) {
  std::vector<BlockHash> hashes;
  for (int i = 0; i < n; ++i) hashes.push_back({static_cast<uint64_t>(i + 1), 5});
  return hashes;
}

uint64_t Digest(const std::vector<BlockHash>& hashes) {
  uint64_t sum = 0;
  for (const BlockHash& h : hashes) sum += DigestTerm(h);
  return sum;
}

std::vector<uint8_t> AllBuckets() {
  std::vector<uint8_t> buckets(kNumDigestBuckets);
  std::iota(buckets.begin(), buckets.end(), 0);
  return buckets;
}

class GroupTableTest : public ::testing::Test {
 protected:
  // Group 0 serves and holds three blocks.
  GroupTableTest() {
    groups_.OnHello(0, Hello(7), kNow);
    const uint64_t number = TakeSync().number;
    groups_.OnCache(0, CacheSyncReply{.number = number, .epoch = 7, .seq = 10}, kNow);
    groups_.OnCache(0, BucketContents{7, 10, AllBuckets(), Hashes(3)}, kNow);
  }
  CacheSyncCommand TakeSync() {
    const auto commands = groups_.TakeCommands();
    EXPECT_EQ(commands.size(), 1u);
    return commands.empty() ? CacheSyncCommand() : std::get<CacheSyncCommand>(commands[0].second);
  }
  GroupView View(int group, int num_blocks = 5) {
    return groups_.Views(Hashes(num_blocks), 0)[group];
  }

  const std::vector<BlockHash> two_ = Hashes(2), five_ = Hashes(5);
  GroupTable groups_{{{"a", "x:1"}, {"b", "x:2"}}};
};

TEST_F(GroupTableTest, AppliesDeltas) {
  EXPECT_EQ(View(0).matched_blocks, 3);
  groups_.OnCache(0, CacheDelta{7, 11, {five_[3]}, {}, false, Digest(Hashes(4))}, kNow);
  EXPECT_EQ(View(0).matched_blocks, 4);
  EXPECT_TRUE(groups_.TakeCommands().empty());
}

TEST_F(GroupTableTest, AGroupThatIsNotInSyncIsScoredByItsLoadOnly) {
  groups_.OnHello(1, Hello(7), kNow);
  groups_.OnCache(1, CacheSyncReply{.number = TakeSync().number, .epoch = 7, .seq = 1}, kNow);
  groups_.OnCache(1, BucketContents{7, 1, {0, 1, 2}, Hashes(3)}, kNow);
  EXPECT_FALSE(groups_.cache(1).in_sync());
  EXPECT_EQ(View(1).matched_blocks, 0);
  EXPECT_TRUE(View(1).accepting);
  groups_.OnCache(1, BucketContents{7, 1, AllBuckets(), Hashes(3)}, kNow);
  EXPECT_EQ(View(1).matched_blocks, 3);
}

TEST_F(GroupTableTest, ShowsEveryRankAsReadyOnceTheGroupIs) {
  groups_.OnHello(1, Hello(7, /*ready=*/false), kNow);
  groups_.OnProgress(1, {0, "weights", 10, 10}, kNow);
  groups_.OnProgress(1, {1, "weights", 9, 10}, kNow);
  EXPECT_EQ(groups_[1].progress.at(1).phase, "weights");
  groups_.OnHello(1, Hello(7), kNow);
  EXPECT_EQ(groups_[1].progress.at(0).phase, "ready");
  EXPECT_EQ(groups_[1].progress.at(1).phase, "ready");
}

TEST_F(GroupTableTest, AReadyGroupIsSilentAfterOneSecondALoadingOneLater) {
  groups_.OnHello(1, Hello(1, /*ready=*/false), kNow);
  const absl::Time later = kNow + absl::Milliseconds(1001);
  EXPECT_TRUE(groups_.IsSilent(0, later));
  EXPECT_FALSE(groups_.IsSilent(1, later));
  EXPECT_TRUE(groups_.IsSilent(1, kNow + absl::Seconds(31)));
}

TEST_F(GroupTableTest, RefusesAGroupThatServesAnotherModel) {
  GroupHello other = Hello(1);
  other.model_key = "another";
  EXPECT_FALSE(groups_.OnHello(1, other, kNow));
  EXPECT_EQ(groups_[1].phase, GroupState::Phase::kConnecting);
  EXPECT_EQ(groups_[1].last_error, "serves model_key another, other groups serve m");
}

TEST_F(GroupTableTest, AGroupThatComesBackInItsEpochGoesOnFromWhereItWas) {
  groups_.Dispatch(1, 0, two_, {}, kNow);
  groups_[0].drained_here = true;
  groups_.OnDown(0, "gone", kNow);
  EXPECT_FALSE(groups_.cache(0).in_sync());
  EXPECT_EQ(groups_[0].requests_here, 1);
  EXPECT_TRUE(groups_[0].drained_here);
  EXPECT_EQ(groups_[0].last_error, "gone");
  groups_.Retire(1);
  EXPECT_EQ(groups_[0].requests_here, 0);

  groups_.OnHello(0, Hello(7), kNow);
  const CacheSyncCommand sync = TakeSync();
  EXPECT_EQ(sync.epoch, 7u);
  EXPECT_EQ(sync.seq, 10u);
  groups_.OnCache(0, CacheSyncReply{sync.number, 7, /*resumed=*/true, 10}, kNow);
  EXPECT_EQ(View(0).matched_blocks, 3);
}

TEST_F(GroupTableTest, ANewEpochVoidsTheCache) {
  groups_.OnDown(0, "gone", kNow);
  groups_.OnHello(0, Hello(8), kNow);
  EXPECT_EQ(groups_.index().num_blocks(0), 0);
  EXPECT_EQ(TakeSync().epoch, 0u);
}

TEST_F(GroupTableTest, WhatWasDispatchedCountsUntilALoadHasCountedIt) {
  groups_.Dispatch(1, 0, two_, {.prefill_seconds = 0.5}, kNow);
  groups_.Dispatch(2, 0, two_, {.prefill_seconds = 0.25}, kNow);
  EXPECT_DOUBLE_EQ(View(0).unreported_seconds, 0.75);
  groups_.OnLoad(0, {.epoch = 7, .cache_seq = 10, .submits = 1},
                 kNow);  // sent before the second came
  EXPECT_DOUBLE_EQ(View(0).unreported_seconds, 0.25);
  groups_.OnLoad(0, {.epoch = 6, .cache_seq = 10, .submits = 2}, kNow);  // of another epoch
  EXPECT_DOUBLE_EQ(View(0).unreported_seconds, 0.25);
  groups_.OnLoad(0, {.epoch = 7, .cache_seq = 10, .submits = 2}, kNow);
  EXPECT_DOUBLE_EQ(View(0).unreported_seconds, 0);
}

TEST_F(GroupTableTest, BlocksOfADispatchedRequestCountAtOnceAndUntilItIsOver) {
  groups_.Dispatch(1, 0, five_, {}, kNow);
  EXPECT_EQ(View(0).matched_blocks, 5);
  EXPECT_EQ(View(0).active_blocks, 5);
  groups_.Confirm(1, 3 * kBlockSize);
  groups_.Tick(kNow + absl::Seconds(100));
  EXPECT_EQ(View(0).matched_blocks, 5);
  groups_.Retire(1);
  EXPECT_EQ(View(0).matched_blocks, 3);
  EXPECT_EQ(View(0).active_blocks, 0);
}

TEST_F(GroupTableTest, WhatIsNotAcknowledgedInTwiceTheForeseenTimeCountsNoMore) {
  groups_.Dispatch(1, 0, five_, {.wait_seconds = 2, .prefill_seconds = 1, .cached_tokens = 64},
                   kNow);
  groups_.Tick(kNow + absl::Seconds(6));
  EXPECT_EQ(View(0).matched_blocks, 5);
  groups_.Tick(kNow + absl::Milliseconds(6100));
  EXPECT_EQ(View(0).matched_blocks, 3);
  EXPECT_EQ(groups_.forecasts().expired, 1);
  groups_.Confirm(1, 128);  // it was admitted after all
  EXPECT_EQ(View(0).matched_blocks, 5);
  EXPECT_EQ(groups_.forecasts().confirmed, 1);
  EXPECT_EQ(groups_.forecasts().foreseen_cached_tokens, 64);
  EXPECT_EQ(groups_.forecasts().found_cached_tokens, 128);
  groups_.Retire(1);
  groups_.Dispatch(2, 0, five_, {}, kNow);
  groups_.Retire(2, /*refused=*/true);
  EXPECT_EQ(groups_.forecasts().refused, 1);
  EXPECT_EQ(View(0).matched_blocks, 3);
}

}  // namespace
}  // namespace bough::router
