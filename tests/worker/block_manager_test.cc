#include "worker/block_manager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace bough {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<int32_t> Filled(int32_t token) { return std::vector<int32_t>(kBlockSize, token); }
BlockHash Hash(uint64_t i) { return {i, ~i}; }

class BlockManagerTest : public ::testing::Test {
 protected:
  // A chain of new cached blocks with tokens and hashes first, first + 1, ...
  std::vector<int32_t> CacheChain(int first, int num) {
    std::vector<int32_t> table;
    for (int i = 0; i < num; ++i) {
      const int32_t block = *blocks_.Allocate();
      const int32_t parent = table.empty() ? kNoBlock : table.back();
      table.push_back(*blocks_.Cache(block, Hash(first + i), parent, Filled(first + i)));
    }
    return table;
  }
  void CheckRefs(std::vector<int> refs) {
    refs.resize(blocks_.num_total());
    blocks_.CheckIntegrity(refs);
  }

  BlockManager blocks_{4};
};

TEST_F(BlockManagerTest, AllocatesUntilAllAreUsed) {
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(blocks_.Allocate().has_value());
  EXPECT_EQ(blocks_.Allocate(), std::nullopt);
  EXPECT_EQ(blocks_.num_used(), 4);
  CheckRefs({1, 1, 1, 1});
}

TEST_F(BlockManagerTest, ABlockOutsideOfTheCacheIsFreeWithItsLastReference) {
  const std::vector<int32_t> table = {*blocks_.Allocate()};
  blocks_.Ref(table[0]);
  blocks_.Release(table);
  EXPECT_EQ(blocks_.num_free(), 3);
  blocks_.Release(table);
  EXPECT_EQ(blocks_.num_free(), 4);
}

TEST_F(BlockManagerTest, AReleasedCachedBlockIsFoundAgain) {
  const auto table = CacheChain(0, 2);
  blocks_.Release(table);
  EXPECT_EQ(blocks_.num_cached(), 2);
  EXPECT_EQ(blocks_.Find(Hash(0), kNoBlock, Filled(0)), table[0]);
  EXPECT_EQ(blocks_.Find(Hash(1), table[0], Filled(1)), table[1]);
  blocks_.Ref(table[0]);
  EXPECT_EQ(blocks_.num_cached(), 1);
  EXPECT_EQ(blocks_.num_used(), 1);
}

TEST_F(BlockManagerTest, EvictsTheOldestLeafFirst) {
  const auto older = CacheChain(0, 2), younger = CacheChain(10, 2);
  blocks_.Release(older);
  blocks_.Release(younger);
  CheckRefs({});
  EXPECT_EQ(blocks_.Allocate(), older[1]);
  EXPECT_EQ(blocks_.Allocate(), older[0]);
  EXPECT_EQ(blocks_.Allocate(), younger[1]);
  EXPECT_EQ(blocks_.Find(Hash(10), kNoBlock, Filled(10)), younger[0]);
  EXPECT_EQ(blocks_.Find(Hash(11), younger[0], Filled(11)), std::nullopt);
}

TEST_F(BlockManagerTest, UseMakesAChainYoung) {
  const auto a = CacheChain(0, 1), b = CacheChain(10, 1), rest = CacheChain(20, 2);
  blocks_.Release(a);
  blocks_.Release(b);
  blocks_.Ref(a[0]);
  blocks_.Release(a);
  EXPECT_EQ(blocks_.Allocate(), b[0]);
}

TEST_F(BlockManagerTest, AnEqualHashWithOtherTokensIsAMiss) {
  CacheChain(0, 1);
  EXPECT_EQ(blocks_.Find(Hash(0), kNoBlock, Filled(7)), std::nullopt);
}

TEST_F(BlockManagerTest, AnEqualHashAfterAnotherParentIsAMiss) {
  const auto a = CacheChain(0, 2), b = CacheChain(10, 1);
  EXPECT_EQ(blocks_.Find(Hash(1), b[0], Filled(1)), std::nullopt);
}

TEST_F(BlockManagerTest, ASecondEqualBlockIsSwappedForTheFirst) {
  const auto first = CacheChain(0, 1);
  const int32_t second = *blocks_.Allocate();
  EXPECT_EQ(blocks_.Cache(second, Hash(0), kNoBlock, Filled(0)), first[0]);
  EXPECT_EQ(blocks_.ref_count(first[0]), 2);
  EXPECT_EQ(blocks_.num_free(), 3);
}

TEST_F(BlockManagerTest, ACollidingBlockStaysOutOfTheCache) {
  const auto first = CacheChain(0, 1);
  const int32_t other = *blocks_.Allocate();
  EXPECT_EQ(blocks_.Cache(other, Hash(0), kNoBlock, Filled(7)), std::nullopt);
  EXPECT_EQ(blocks_.ref_count(other), 1);
  EXPECT_EQ(blocks_.Find(Hash(0), kNoBlock, Filled(0)), first[0]);
}

TEST_F(BlockManagerTest, EventsSayWhatWasStoredAndRemovedInOrder) {
  const auto table = CacheChain(0, 4);
  auto events = blocks_.TakeEvents();
  EXPECT_THAT(events.stored, ElementsAre(Hash(0), Hash(1), Hash(2), Hash(3)));
  EXPECT_THAT(events.removed, IsEmpty());
  blocks_.Release(table);
  blocks_.Allocate();
  blocks_.Allocate();
  events = blocks_.TakeEvents();
  EXPECT_THAT(events.stored, IsEmpty());
  EXPECT_THAT(events.removed, ElementsAre(Hash(3), Hash(2)));
}

TEST_F(BlockManagerTest, EventsAreNet) {
  blocks_.Release(CacheChain(0, 1));
  blocks_.TakeEvents();
  std::vector<int32_t> all;
  for (int i = 0; i < 4; ++i) all.push_back(*blocks_.Allocate());  // evicts 0
  blocks_.Release(all);
  const auto again = CacheChain(0, 2);  // stores 0 again, and 1
  EXPECT_THAT(blocks_.TakeEvents().stored, ElementsAre(Hash(1)));
}

using BlockManagerDeathTest = BlockManagerTest;

TEST_F(BlockManagerDeathTest, IntegritySeesAReferenceThatNobodyHolds) {
  blocks_.Allocate();
  EXPECT_DEATH(CheckRefs({}), "CHECK failed: b.ref == expected_refs");
}

TEST_F(BlockManagerDeathTest, IntegritySeesAParentThatWouldGoBeforeItsChild) {
  const auto table = CacheChain(0, 2);
  blocks_.Release({&table[0], 1});
  blocks_.Release({&table[1], 1});
  EXPECT_DEATH(CheckRefs({}), "is used or younger than its unused parent");
}

}  // namespace
}  // namespace bough
