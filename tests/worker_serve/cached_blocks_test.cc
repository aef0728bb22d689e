#include "worker/cached_blocks.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bough {
namespace {

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

TEST(CachedBlocks, AnEmptySnapshotIsOneLastChunk) {
  const auto chunks = CachedBlocks(kEpoch).Snapshot();
  ASSERT_EQ(chunks.size(), 1);
  EXPECT_TRUE(chunks[0].snapshot().last());
  EXPECT_EQ(chunks[0].snapshot().seq(), 0);
  EXPECT_EQ(chunks[0].snapshot().hashes(), "");
}

TEST(CachedBlocks, ALargeSnapshotComesInChunksOfOneSeq) {
  CachedBlocks blocks(kEpoch);
  CacheEvents events;
  for (uint64_t i = 0; i <= CachedBlocks::kSnapshotHashes; ++i) events.stored.push_back({i, 1});
  blocks.Apply(events);
  const auto chunks = blocks.Snapshot();
  ASSERT_EQ(chunks.size(), 2);
  EXPECT_FALSE(chunks[0].snapshot().last());
  EXPECT_TRUE(chunks[1].snapshot().last());
  EXPECT_EQ(chunks[0].snapshot().hashes().size(), 16u * CachedBlocks::kSnapshotHashes);
  EXPECT_EQ(chunks[1].snapshot().hashes().size(), 16u);
  EXPECT_EQ(chunks[0].snapshot().seq(), 1);
  EXPECT_EQ(chunks[1].snapshot().seq(), 1);
}

}  // namespace
}  // namespace bough
