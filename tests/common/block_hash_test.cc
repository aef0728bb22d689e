#include "common/block_hash.h"

#include <gtest/gtest.h>

#include <numeric>

namespace bough {
namespace {

std::vector<int32_t> Tokens(int n) {
  std::vector<int32_t> tokens(n);
  std::iota(tokens.begin(), tokens.end(), 100);
  return tokens;
}

TEST(BlockHash, HashesFullBlocksOnly) {
  const BlockHash root = RootHash("demo", "");
  EXPECT_EQ(HashBlocks(root, Tokens(0)).size(), 0u);
  EXPECT_EQ(HashBlocks(root, Tokens(kBlockSize - 1)).size(), 0u);
  EXPECT_EQ(HashBlocks(root, Tokens(kBlockSize)).size(), 1u);
  EXPECT_EQ(HashBlocks(root, Tokens(3 * kBlockSize + 1)).size(), 3u);
}

TEST(BlockHash, ALongerPromptKeepsTheHashesOfItsPrefix) {
  const BlockHash root = RootHash("demo", "");
  const auto full = HashBlocks(root, Tokens(4 * kBlockSize));
  const auto prefix = HashBlocks(root, Tokens(2 * kBlockSize + 5));
  ASSERT_EQ(prefix.size(), 2u);
  EXPECT_EQ(prefix[0], full[0]);
  EXPECT_EQ(prefix[1], full[1]);
}

TEST(BlockHash, IsTheChainOfNextHash) {
  const BlockHash root = RootHash("demo", "");
  const auto tokens = Tokens(2 * kBlockSize);
  const auto hashes = HashBlocks(root, tokens);
  const std::span<const int32_t> all = tokens;
  EXPECT_EQ(hashes[0], NextHash(root, all.first(kBlockSize)));
  EXPECT_EQ(hashes[1], NextHash(hashes[0], all.last(kBlockSize)));
}

TEST(BlockHash, EqualBlocksAtDifferentDepthsDiffer) {
  const std::vector<int32_t> tokens(2 * kBlockSize, 7);
  const auto hashes = HashBlocks(RootHash("demo", ""), tokens);
  EXPECT_NE(hashes[0], hashes[1]);
}

TEST(BlockHash, AChangedTokenChangesItsBlockAndAllAfterIt) {
  const BlockHash root = RootHash("demo", "");
  auto tokens = Tokens(3 * kBlockSize);
  const auto before = HashBlocks(root, tokens);
  tokens[2 * kBlockSize - 1] += 1;
  const auto after = HashBlocks(root, tokens);
  EXPECT_EQ(after[0], before[0]);
  EXPECT_NE(after[1], before[1]);
  EXPECT_NE(after[2], before[2]);
}

TEST(BlockHash, ModelAndSaltSeedTheChain) {
  EXPECT_NE(RootHash("demo", ""), RootHash("demo", "tenant"));
  EXPECT_NE(RootHash("demo", ""), RootHash("other", ""));
  EXPECT_NE(RootHash("ab", "c"), RootHash("a", "bc"));
  EXPECT_EQ(RootHash("ab", "c"), RootHash("ab", "c"));
}

// Router and worker of different releases share one index: the definition may not drift.
TEST(BlockHash, ValuesAreFrozen) {
  const BlockHash root = RootHash("demo", "tenant");
  EXPECT_EQ(root.lo, 0x1160396e830ec2e6u);
  EXPECT_EQ(root.hi, 0xec70ef44ad9d14aeu);
  const BlockHash first = HashBlocks(root, Tokens(kBlockSize))[0];
  EXPECT_EQ(first.lo, 0xf46f739703f1a181u);
  EXPECT_EQ(first.hi, 0xebe7ec662075b6afu);
}

TEST(BlockHash, DigestForgetsARemovedBlock) {
  const auto hashes = HashBlocks(RootHash("demo", ""), Tokens(2 * kBlockSize));
  uint64_t digest = DigestTerm(hashes[0]) + DigestTerm(hashes[1]);
  digest -= DigestTerm(hashes[0]);
  EXPECT_EQ(digest, DigestTerm(hashes[1]));
}

TEST(BlockHashDeathTest, RefusesAPartialBlock) {
  const auto tokens = Tokens(kBlockSize - 1);
  EXPECT_DEATH(NextHash(RootHash("demo", ""), tokens), "63 vs. 64");
}

}  // namespace
}  // namespace bough
