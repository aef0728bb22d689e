#include "worker/cached_blocks.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bough {
namespace {

namespace link = ::bough::group::v1;

constexpr uint64_t kEpoch = 7;

std::string Bytes(const std::vector<BlockHash>& hashes) {
  std::string bytes;
  for (const BlockHash& hash : hashes) AppendHash(hash, &bytes);
  return bytes;
}

group::v1::CacheDelta Delta(CachedBlocks* blocks, const CacheEvents& events) {
  const auto response = blocks->Apply(events);
  return response ? response->cache_delta() : group::v1::CacheDelta();
}

const BlockHash kA{1, 2}, kB{3, 4}, kC{0xfedcba9876543210, 0x0123456789abcdef};

TEST(CachedBlocks, ADeltaHasTheNextSeqAndTheDigestAfterIt) {
  CachedBlocks blocks(kEpoch);
  const auto first = Delta(&blocks, {.stored = {kA, kC}, .removed = {}});
  EXPECT_EQ(first.epoch(), kEpoch);
  EXPECT_EQ(first.seq(), 1);
  EXPECT_EQ(first.stored(), Bytes({kA, kC}));
  EXPECT_EQ(first.digest(), DigestTerm(kA) + DigestTerm(kC));
  const auto second = Delta(&blocks, {.stored = {}, .removed = {kA}});
  EXPECT_EQ(second.seq(), 2);
  EXPECT_EQ(second.removed(), Bytes({kA}));
  EXPECT_EQ(second.digest(), DigestTerm(kC));
}

TEST(CachedBlocks, NothingChangedIsNoDelta) {
  CachedBlocks blocks(kEpoch);
  EXPECT_FALSE(blocks.Apply({}).has_value());
  EXPECT_EQ(Delta(&blocks, {.stored = {kB}, .removed = {}}).seq(), 1);
}

TEST(CachedBlocks, RemovingAllIsSaidInOneBit) {
  CachedBlocks blocks(kEpoch);
  EXPECT_FALSE(Delta(&blocks, {.stored = {kA, kB}, .removed = {}}).cleared());
  const auto delta = Delta(&blocks, {.stored = {kC}, .removed = {kB, kA}});
  EXPECT_TRUE(delta.cleared());
  EXPECT_EQ(delta.removed(), "");
  EXPECT_EQ(delta.stored(), Bytes({kC}));
  EXPECT_EQ(delta.digest(), DigestTerm(kC));
}

link::CacheSync Sync(uint64_t epoch, uint64_t seq) {
  link::CacheSync sync;
  sync.set_number(5);
  sync.set_epoch(epoch);
  sync.set_seq(seq);
  return sync;
}

// A ring with room for `num_hashes`, and three deltas of one hash each.
CachedBlocks ThreeDeltas(size_t num_hashes) {
  CachedBlocks blocks(kEpoch, {.ring_bytes = 16 * num_hashes});
  for (const BlockHash& hash : {kA, kB, kC}) blocks.Apply({.stored = {hash}, .removed = {}});
  return blocks;
}

TEST(CachedBlocks, ARouterThatHoldsARecentStateGetsTheDeltasSince) {
  const CachedBlocks blocks = ThreeDeltas(3);
  CacheReader reader;
  const auto responses = blocks.OnSync(Sync(kEpoch, 1), &reader);
  ASSERT_EQ(responses.size(), 3u);
  EXPECT_EQ(responses[0].cache_sync_reply().number(), 5);
  EXPECT_TRUE(responses[0].cache_sync_reply().resumed());
  EXPECT_EQ(responses[1].cache_delta().seq(), 2);
  EXPECT_EQ(responses[2].cache_delta().stored(), Bytes({kC}));
  EXPECT_TRUE(reader.follows);
  EXPECT_TRUE(reader.pending.none());
  EXPECT_EQ(blocks.OnSync(Sync(kEpoch, 3), &reader).size(), 1u);  // nothing happened since
}

TEST(CachedBlocks, ARouterThatHoldsTooOldOrForeignAStateGetsAllBuckets) {
  struct {
    uint64_t epoch, seq;
  } cases[] = {{0, 0}, {kEpoch, 0}, {kEpoch, 4}, {kEpoch - 1, 3}};  // the ring holds 2 and 3
  for (const auto& c : cases) {
    const CachedBlocks blocks = ThreeDeltas(2);
    CacheReader reader;
    const auto responses = blocks.OnSync(Sync(c.epoch, c.seq), &reader);
    ASSERT_EQ(responses.size(), 1u);
    EXPECT_FALSE(responses[0].cache_sync_reply().resumed());
    EXPECT_EQ(responses[0].cache_sync_reply().seq(), 3);
    EXPECT_TRUE(reader.pending.all());
  }
}

TEST(CachedBlocks, PendingBucketsComeInMessagesOfBoundedSizeEachWhole) {
  CachedBlocks blocks(kEpoch);
  CacheEvents events;
  for (uint64_t i = 0; i < 20'000; ++i) events.stored.push_back({i, 1});
  blocks.Apply(events);
  CacheReader reader;
  reader.pending.set();
  size_t num_hashes = 0, num_buckets = 0, num_messages = 0;
  while (reader.pending.any()) {
    const link::LinkResponse response = blocks.NextBuckets(&reader);
    EXPECT_EQ(response.buckets().seq(), 1);
    EXPECT_LE(response.buckets().hashes().size(), CacheFeedLimits().message_bytes);
    num_hashes += response.buckets().hashes().size() / 16;
    num_buckets += response.buckets().buckets().size();
    ++num_messages;
  }
  EXPECT_EQ(num_hashes, events.stored.size());
  EXPECT_EQ(num_buckets, size_t{kNumDigestBuckets});
  EXPECT_GE(num_messages, 5u);
  EXPECT_LE(num_messages, 6u);
}

TEST(CachedBlocks, BucketsOfAnotherEpochAreNotSent) {
  const CachedBlocks blocks = ThreeDeltas(3);
  link::BucketsRequest request;
  request.set_epoch(kEpoch + 1);
  request.set_buckets("abc");
  CacheReader reader;
  blocks.OnBucketsRequest(request, &reader);
  EXPECT_TRUE(reader.pending.none());
  request.set_epoch(kEpoch);
  blocks.OnBucketsRequest(request, &reader);
  EXPECT_EQ(reader.pending.count(), 3u);
}

}  // namespace
}  // namespace bough
