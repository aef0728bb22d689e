#include "router/group_table.h"

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

class GroupTableTest : public ::testing::Test {
 protected:
  GroupTableTest() {
    groups_.OnHello(0, Hello(7), kNow);
    groups_.OnSnapshot(0, {.epoch = 7, .seq = 10, .hashes = {}, .last = true}, kNow);
  }
  CacheDelta Stored(uint64_t seq, std::vector<BlockHash> hashes) {
    return {.epoch = 7, .seq = seq, .stored = hashes, .removed = {}, .digest = Digest(hashes)};
  }
  GroupTable groups_{{{"a", "x:1"}, {"b", "x:2"}}};
};

TEST_F(GroupTableTest, AppliesDeltasInOrder) {
  EXPECT_FALSE(groups_.OnDelta(0, Stored(11, Hashes(3)), kNow));
  EXPECT_EQ(groups_.Views(Hashes(5), 0)[0].matched_blocks, 3);
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

TEST_F(GroupTableTest, AsksForASnapshotAfterAGapAndIgnoresDeltasUntilItIsComplete) {
  EXPECT_TRUE(groups_.OnDelta(0, Stored(12, Hashes(3)), kNow));
  EXPECT_EQ(groups_.index().num_blocks(0), 0);
  EXPECT_FALSE(groups_.OnDelta(0, Stored(13, Hashes(3)), kNow));
  groups_.OnSnapshot(0, {.epoch = 7, .seq = 13, .hashes = Hashes(2), .last = false}, kNow);
  EXPECT_FALSE(groups_[0].in_sync);
  groups_.OnSnapshot(0, {.epoch = 7, .seq = 13, .hashes = Hashes(4), .last = true}, kNow);
  EXPECT_TRUE(groups_[0].in_sync);
  EXPECT_EQ(groups_.index().num_blocks(0), 4);
  CacheDelta next{.epoch = 7, .seq = 14, .stored = {}, .removed = Hashes(4), .digest = 0};
  EXPECT_FALSE(groups_.OnDelta(0, next, kNow));
  EXPECT_EQ(groups_.index().num_blocks(0), 0);
}

TEST_F(GroupTableTest, AsksForASnapshotWhenTheDigestDiffers) {
  CacheDelta delta = Stored(11, Hashes(3));
  ++delta.digest;
  EXPECT_TRUE(groups_.OnDelta(0, delta, kNow));
  EXPECT_FALSE(groups_[0].in_sync);
}

TEST_F(GroupTableTest, ClearedComesBeforeStored) {
  groups_.OnDelta(0, Stored(11, Hashes(3)), kNow);
  CacheDelta delta = Stored(12, Hashes(1));
  delta.cleared = true;
  EXPECT_FALSE(groups_.OnDelta(0, delta, kNow));
  EXPECT_EQ(groups_.index().num_blocks(0), 1);
}

TEST_F(GroupTableTest, DropsCacheNewsOfAnotherEpoch) {
  CacheDelta delta = Stored(11, Hashes(3));
  delta.epoch = 6;
  EXPECT_FALSE(groups_.OnDelta(0, delta, kNow));
  EXPECT_EQ(groups_.index().num_blocks(0), 0);
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

TEST_F(GroupTableTest, ADownGroupForgetsItsCacheButNotItsRequestsOrDrain) {
  groups_.OnDelta(0, Stored(11, Hashes(3)), kNow);
  groups_.Dispatch(0, Hashes(2), 0.5);
  groups_[0].drained_here = true;
  groups_.OnDown(0, "gone");
  EXPECT_EQ(groups_.index().num_blocks(0), 0);
  EXPECT_EQ(groups_[0].requests_here, 1);
  EXPECT_TRUE(groups_[0].drained_here);
  EXPECT_EQ(groups_[0].last_error, "gone");
  groups_.Retire(0, Hashes(2));
  EXPECT_EQ(groups_[0].requests_here, 0);
}

TEST_F(GroupTableTest, WhatWasDispatchedCountsUntilTheNextLoad) {
  groups_.Dispatch(0, Hashes(2), 0.5);
  GroupView view = groups_.Views(Hashes(5), 0)[0];
  EXPECT_DOUBLE_EQ(view.unreported_seconds, 0.5);
  EXPECT_EQ(view.active_blocks, 2);
  EXPECT_EQ(view.matched_blocks, 2);
  groups_.OnLoad(0, {}, kNow);
  EXPECT_DOUBLE_EQ(groups_.Views(Hashes(5), 0)[0].unreported_seconds, 0);
}

}  // namespace
}  // namespace bough::router
