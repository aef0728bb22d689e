#include "router/cache_follower.h"

#include <numeric>
#include <vector>

#include "gtest/gtest.h"

namespace bough::router {
namespace {

constexpr uint64_t kEpoch = 7;

std::vector<BlockHash> Hashes(int begin, int end) {
  std::vector<BlockHash> hashes;
  for (int i = begin; i < end; ++i) hashes.push_back({static_cast<uint64_t>(i), 5});
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

class CacheFollowerTest : public ::testing::Test {
 protected:
  using Command = CacheFollower::Command;

  template <typename Event>
  Command On(const Event& event) {
    return follower_.On(event, now_);
  }
  Command Stored(uint64_t seq, int begin, int end) {
    return On(CacheDelta{kEpoch, seq, Hashes(begin, end), {}, false, Digest(Hashes(0, end))});
  }
  Command Load(uint64_t seq, int num_blocks) {
    GroupLoad load;
    load.epoch = kEpoch;
    load.cache_seq = seq;
    load.cache_digest = Digest(Hashes(0, num_blocks));
    return On(load);
  }
  // Holds blocks [0, num_blocks) as of seq 10.
  void SyncTo(int num_blocks) {
    const uint64_t number = SyncIn(follower_.OnReady(kEpoch, now_)).number;
    EXPECT_FALSE(On(CacheSyncReply{number, kEpoch, /*resumed=*/false, 10}));
    EXPECT_FALSE(On(BucketContents{kEpoch, 10, AllBuckets(), Hashes(0, num_blocks)}));
    EXPECT_TRUE(follower_.in_sync());
  }
  static CacheSyncCommand SyncIn(const Command& command) {
    const bool is_sync = command && std::holds_alternative<CacheSyncCommand>(*command);
    EXPECT_TRUE(is_sync);
    return is_sync ? std::get<CacheSyncCommand>(*command) : CacheSyncCommand();
  }
  int Held() const { return index_.num_blocks(3); }

  absl::Time now_ = absl::UnixEpoch();
  PrefixIndex index_;
  CacheFollower follower_{3, &index_};
};

TEST_F(CacheFollowerTest, FillsBucketByBucketWhileDeltasGoOn) {
  const CacheSyncCommand sync = SyncIn(follower_.OnReady(kEpoch, now_));
  EXPECT_EQ(sync.epoch, 0u);
  On(CacheSyncReply{sync.number, kEpoch, false, 10});
  std::vector<uint8_t> buckets = AllBuckets();
  const std::vector<uint8_t> later(buckets.begin() + 100, buckets.end());
  buckets.resize(100);
  std::vector<BlockHash> now, then;
  for (const BlockHash& hash : Hashes(0, 50)) {
    (DigestBucket(hash) < 100 ? now : then).push_back(hash);
  }
  On(BucketContents{kEpoch, 10, buckets, now});
  EXPECT_FALSE(follower_.in_sync());
  EXPECT_FALSE(Stored(11, 50, 60));
  for (const BlockHash& hash : Hashes(50, 60)) {
    if (DigestBucket(hash) >= 100) then.push_back(hash);
  }
  EXPECT_FALSE(On(BucketContents{kEpoch, 11, later, then}));
  EXPECT_TRUE(follower_.in_sync());
  EXPECT_EQ(Held(), 60);
  EXPECT_FALSE(Load(11, 60));
}

TEST_F(CacheFollowerTest, AsksForWhatFollowedAGapAndGoesOn) {
  SyncTo(3);
  const CacheSyncCommand sync = SyncIn(Stored(12, 4, 5));
  EXPECT_EQ(sync.epoch, kEpoch);
  EXPECT_EQ(sync.seq, 10u);
  EXPECT_EQ(follower_.lag(), 2u);
  EXPECT_FALSE(Stored(13, 5, 6)) << "asked already";
  EXPECT_FALSE(On(CacheSyncReply{sync.number, kEpoch, true, 10}));
  EXPECT_FALSE(Stored(11, 3, 4));
  EXPECT_FALSE(Stored(12, 4, 5));
  EXPECT_FALSE(Stored(12, 4, 5)) << "a repetition";
  EXPECT_EQ(Held(), 5);
  EXPECT_TRUE(follower_.in_sync());
}

TEST_F(CacheFollowerTest, MissesALastDeltaByTheLoadReport) {
  SyncTo(3);
  EXPECT_FALSE(Load(10, 3));
  EXPECT_EQ(SyncIn(Load(11, 4)).seq, 10u);
}

TEST_F(CacheFollowerTest, RepairsOnlyTheBucketsThatDiffer) {
  SyncTo(30);
  const auto lost = Hashes(4, 5);
  index_.Remove(3, lost);
  const auto stray = Hashes(100, 101);
  index_.Add(3, stray);
  Command command = Load(10, 30);
  ASSERT_TRUE(command && std::holds_alternative<DigestsCommand>(*command));
  BucketDigests digests{kEpoch, 10, std::vector<uint64_t>(kNumDigestBuckets)};
  for (const BlockHash& h : Hashes(0, 30)) digests.digests[DigestBucket(h)] += DigestTerm(h);
  command = On(digests);
  ASSERT_TRUE(command && std::holds_alternative<BucketsCommand>(*command));
  const std::vector<uint8_t> bad = std::get<BucketsCommand>(*command).buckets;
  EXPECT_EQ(bad.size(), 2u);
  EXPECT_TRUE(follower_.in_sync()) << "all but two buckets are right";
  BucketContents contents{kEpoch, 10, bad, {}};
  for (const BlockHash& h : Hashes(0, 30)) {
    if (DigestBucket(h) == bad[0] || DigestBucket(h) == bad[1]) contents.hashes.push_back(h);
  }
  EXPECT_FALSE(On(contents));
  EXPECT_EQ(index_.digest(3), Digest(Hashes(0, 30)));
  EXPECT_EQ(follower_.stats().buckets_repaired, 2);
  EXPECT_FALSE(Load(10, 30));
}

TEST_F(CacheFollowerTest, StartsOverWhenRepairsDoNotHelp) {
  SyncTo(3);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(Load(10, 99));  // the sum differs, no bucket does
    BucketDigests digests{kEpoch, 10, std::vector<uint64_t>(kNumDigestBuckets)};
    for (const BlockHash& h : Hashes(0, 3)) digests.digests[DigestBucket(h)] += DigestTerm(h);
    EXPECT_FALSE(On(digests));
  }
  EXPECT_EQ(SyncIn(Load(10, 99)).epoch, 0u);
  EXPECT_FALSE(follower_.in_sync());
  EXPECT_EQ(Held(), 0);
}

TEST_F(CacheFollowerTest, StartsOverWhenTheGroupKeepsSayingThatItIsBehind) {
  SyncTo(3);
  EXPECT_FALSE(Load(9, 3));
  EXPECT_FALSE(Load(9, 3));
  EXPECT_EQ(SyncIn(Load(9, 3)).epoch, 0u);
}

TEST_F(CacheFollowerTest, AsksAgainWhatIsNotAnswered) {
  const CacheSyncCommand first = SyncIn(follower_.OnReady(kEpoch, now_));
  EXPECT_FALSE(follower_.Tick(now_));
  now_ += CacheFollower::kAnswerTimeout;
  const CacheSyncCommand second = SyncIn(follower_.Tick(now_));
  On(CacheSyncReply{first.number, kEpoch, false, 10});  // to a question given up
  EXPECT_FALSE(follower_.in_sync());
  On(CacheSyncReply{second.number, kEpoch, false, 10});
  On(BucketContents{kEpoch, 10, {0, 1, 2}, {}});
  now_ += CacheFollower::kAnswerTimeout;
  const Command command = follower_.Tick(now_);
  ASSERT_TRUE(command && std::holds_alternative<BucketsCommand>(*command));
  EXPECT_EQ(std::get<BucketsCommand>(*command).buckets.size(), size_t{kNumDigestBuckets} - 3);
}

TEST_F(CacheFollowerTest, ANewEpochVoidsWhatIsHeldAndLateNewsOfTheOldOne) {
  SyncTo(3);
  follower_.OnDown(now_);
  EXPECT_EQ(SyncIn(follower_.OnReady(kEpoch + 1, now_)).epoch, 0u);
  EXPECT_EQ(Held(), 0);
  EXPECT_FALSE(Stored(11, 3, 4));
  EXPECT_FALSE(On(BucketContents{kEpoch, 10, AllBuckets(), Hashes(0, 3)}));
  EXPECT_EQ(Held(), 0);
}

TEST_F(CacheFollowerTest, ForgetsAGroupThatStaysAway) {
  SyncTo(3);
  follower_.OnDown(now_);
  follower_.Tick(now_ + absl::Seconds(60));
  EXPECT_EQ(Held(), 3);
  EXPECT_EQ(follower_.seq(), 10u);
  follower_.Tick(now_ + absl::Seconds(121));
  EXPECT_EQ(Held(), 0);
  EXPECT_EQ(SyncIn(follower_.OnReady(kEpoch, now_)).epoch, 0u);
}

TEST_F(CacheFollowerTest, ClearedComesBeforeStored) {
  SyncTo(30);
  CacheDelta delta{kEpoch, 11, Hashes(0, 2), {}, /*cleared=*/true, Digest(Hashes(0, 2))};
  EXPECT_FALSE(On(delta));
  EXPECT_EQ(Held(), 2);
  EXPECT_FALSE(Load(11, 2));
}

}  // namespace
}  // namespace bough::router
