#include "router/prefix_index.h"

#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace bough::router {
namespace {

std::vector<BlockHash> Chain(int num_blocks, uint64_t salt = 0) {
  std::vector<BlockHash> chain;
  for (int i = 0; i < num_blocks; ++i) chain.push_back({salt * 1000 + i, ~salt});
  return chain;
}

std::span<const BlockHash> First(const std::vector<BlockHash>& chain, int n) {
  return std::span(chain).first(n);
}

TEST(PrefixIndex, MatchesAsManyLeadingBlocksAsEachGroupHolds) {
  const auto chain = Chain(5);
  PrefixIndex index;
  index.Add(0, First(chain, 2));
  index.Add(63, First(chain, 5));
  const auto depth = index.Match(chain);
  EXPECT_EQ(depth[0], 2);
  EXPECT_EQ(depth[63], 5);
  EXPECT_EQ(depth[1], 0);
}

TEST(PrefixIndex, StopsAtAGroupsFirstMissingBlock) {
  const auto chain = Chain(4);
  PrefixIndex index;
  index.Add(3, chain);
  index.Remove(3, std::span(chain).subspan(1, 1));
  EXPECT_EQ(index.Match(chain)[3], 1);
}

TEST(PrefixIndex, ClearForgetsOneGroupOnly) {
  const auto chain = Chain(3);
  PrefixIndex index;
  index.Add(1, chain);
  index.Add(2, chain);
  index.Clear(1);
  EXPECT_EQ(index.Match(chain)[1], 0);
  EXPECT_EQ(index.Match(chain)[2], 3);
  EXPECT_EQ(index.num_blocks(1), 0);
  EXPECT_EQ(index.digest(1), 0u);
  index.Clear(2);
  EXPECT_EQ(index.size(), 0u);
}

TEST(PrefixIndex, CountsAndDigestAreThoseOfTheSetUnderAnyTrace) {
  const auto universe = Chain(40, 7);
  PrefixIndex index;
  std::set<int> held;
  std::mt19937 random(1);
  for (int step = 0; step < 2000; ++step) {
    const int i = static_cast<int>(random() % universe.size());
    const auto one = std::span(universe).subspan(i, 1);
    if (random() % 2 == 0) {
      index.Add(5, one);
      held.insert(i);
    } else {
      index.Remove(5, one);
      held.erase(i);
    }
    uint64_t digest = 0;
    for (int h : held) digest += DigestTerm(universe[h]);
    ASSERT_EQ(index.digest(5), digest);
    ASSERT_EQ(index.num_blocks(5), static_cast<int>(held.size()));
    ASSERT_EQ(index.size(), held.size());
  }
}

TEST(ActivePrefixes, HoldsABlockUntilItsLastRequestIsGone) {
  const auto chain = Chain(3);
  ActivePrefixes active;
  active.Add(4, chain);
  active.Add(4, First(chain, 2));
  active.Remove(4, chain);
  EXPECT_EQ(active.Match(chain)[4], 2);
  active.Remove(4, First(chain, 2));
  EXPECT_TRUE(active.empty());
}

}  // namespace
}  // namespace bough::router
