#include "router/prefix_index.h"

#include <atomic>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace bough::router {
namespace {

std::vector<BlockHash> Chain(int num_blocks, uint64_t salt = 0) {
  std::vector<BlockHash> chain;
  for (int i = 0; i < num_blocks; ++i) chain.push_back({salt * 1000000 + i, ~salt});
  return chain;
}

std::span<const BlockHash> First(const std::vector<BlockHash>& chain, int n) {
  return std::span(chain).first(n);
}

using Sets = std::set<std::pair<uint64_t, uint64_t>>;

// Of every group, as a whole and by bucket; and the buckets' hashes.
void ExpectSameDigests(const PrefixIndex& index, const std::vector<Sets>& held) {
  for (int g = 0; g < static_cast<int>(held.size()); ++g) {
    std::vector<uint64_t> digests(kNumDigestBuckets);
    uint64_t digest = 0;
    for (const auto& [lo, hi] : held[g]) {
      digest += DigestTerm({lo, hi});
      digests[DigestBucket({lo, hi})] += DigestTerm({lo, hi});
    }
    EXPECT_EQ(index.digest(g), digest);
    EXPECT_EQ(index.num_blocks(g), static_cast<int>(held[g].size()));
    Sets found;
    for (int b = 0; b < kNumDigestBuckets; ++b) {
      EXPECT_EQ(index.bucket_digest(g, b), digests[b]);
      index.ForEachInBucket(g, b, [&](const BlockHash& hash) {
        EXPECT_EQ(DigestBucket(hash), b);
        EXPECT_TRUE(found.insert({hash.lo, hash.hi}).second);
      });
    }
    EXPECT_EQ(found, held[g]);
  }
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
}

TEST(PrefixIndex, MatchesAndDigestsAreThoseOfTheSetsUnderAnyTrace) {
  constexpr int kGroups = 5;
  std::vector<std::vector<BlockHash>> chains;  // of common beginnings
  std::mt19937 random(1);
  for (int i = 0; i < 60; ++i) {
    std::vector<BlockHash> chain;
    if (i % 3 != 0) chain.assign(chains[i - 1].begin(), chains[i - 1].begin() + 5 * (i % 3));
    const auto tail = Chain(10 + random() % 60, 100 + i);
    chain.insert(chain.end(), tail.begin(), tail.end());
    chains.push_back(chain);
  }
  PrefixIndex index;
  std::vector<Sets> held(kGroups);
  for (int step = 0; step < 10000; ++step) {
    const int group = random() % kGroups;
    const auto& chain = chains[random() % chains.size()];
    if (random() % 500 == 0) {
      index.Clear(group);
      held[group].clear();
    } else if (random() % 2 == 0) {
      const auto blocks = First(chain, random() % (chain.size() + 1));
      index.Add(group, blocks);
      for (const BlockHash& hash : blocks) held[group].insert({hash.lo, hash.hi});
    } else {
      // Leaf first: all chains that pass here lose what is behind it too.
      const size_t from = random() % chain.size();
      for (const auto& other : chains) {
        if (other.size() <= from || !(other[from] == chain[from])) continue;
        index.Remove(group, std::span(other).subspan(from));
        for (size_t i = from; i < other.size(); ++i) {
          held[group].erase({other[i].lo, other[i].hi});
        }
      }
    }
    const auto& asked = chains[random() % chains.size()];
    const GroupDepths depths = index.Match(asked);
    for (int g = 0; g < kGroups; ++g) {
      size_t depth = 0;
      while (depth < asked.size() && held[g].contains({asked[depth].lo, asked[depth].hi})) ++depth;
      ASSERT_EQ(depths[g], static_cast<int>(depth)) << "group " << g << ", step " << step;
    }
    if (step % 100 == 0) ExpectSameDigests(index, held);
  }
  while (index.Sweep()) {
  }
  std::set<std::pair<uint64_t, uint64_t>> all;
  for (const Sets& set : held) all.insert(set.begin(), set.end());
  EXPECT_EQ(index.size(), all.size());
  EXPECT_EQ(index.num_refused(), 0);
}

TEST(PrefixIndex, AGroupFilledAgainRightAfterItsClearHasOnlyTheNewBlocks) {
  const auto old_blocks = Chain(5000, 1), new_blocks = Chain(5000, 2);
  PrefixIndex index;
  index.Add(7, old_blocks);
  index.Add(8, old_blocks);
  for (int round = 0; round < 20; ++round) {
    index.Clear(7);
    EXPECT_EQ(index.Match(old_blocks)[7], 0);
    index.Add(7, round % 2 == 0 ? new_blocks : old_blocks);
    EXPECT_EQ(index.Match(old_blocks)[7], round % 2 == 0 ? 0 : 5000);
    EXPECT_EQ(index.Match(new_blocks)[7], round % 2 == 0 ? 5000 : 0);
    EXPECT_EQ(index.Match(old_blocks)[8], 5000);
    index.Remove(7, First(old_blocks, 10));  // a no-op in even rounds, stale bits or not
    EXPECT_EQ(index.num_blocks(7), round % 2 == 0 ? 5000 : 4990);
  }
}

TEST(PrefixIndex, SweepingGivesTheRoomOfClearedGroupsBackInSlices) {
  const auto blocks = Chain(100000, 1);
  PrefixIndex index;
  index.Add(1, blocks);
  index.Clear(1);
  EXPECT_EQ(index.num_blocks(1), 0);
  EXPECT_EQ(index.size(), blocks.size());
  int slices = 1;
  while (index.Sweep()) ++slices;
  EXPECT_EQ(index.size(), 0u);
  EXPECT_GE(slices, 10);
}

TEST(PrefixIndex, RefusesNewBlocksAtItsCapAndSaysWhoseViewIsIncomplete) {
  const auto first = Chain(80, 1), second = Chain(80, 2);
  PrefixIndex index(100);
  index.Add(0, first);
  index.Add(1, second);
  EXPECT_EQ(index.size(), 100u);
  EXPECT_EQ(index.num_refused(), 60);
  EXPECT_TRUE(index.complete(0));
  EXPECT_FALSE(index.complete(1));
  EXPECT_EQ(index.num_blocks(1), 20);
  EXPECT_EQ(index.Match(second)[1], 20);
  index.Add(1, first);  // held already: needs no room
  EXPECT_EQ(index.Match(first)[1], 80);
  index.Clear(1);
  EXPECT_TRUE(index.complete(1));
  EXPECT_EQ(index.num_blocks(1), 0);
  while (index.Sweep()) {
  }
  index.Add(1, First(second, 20));
  EXPECT_TRUE(index.complete(1));
}

TEST(PrefixIndex, CountsOnlyWhatItHoldsOfHashesMadeForOnePosition) {
  std::vector<BlockHash> hashes;
  for (uint64_t i = 0; i < 600; ++i) hashes.push_back({99 - i * 0x9e3779b97f4a7c15, i});
  PrefixIndex index;
  index.Add(2, hashes);
  index.Add(2, Chain(5000, 3));  // grows
  int num_held = 0;
  uint64_t digest = 0;
  for (int b = 0; b < kNumDigestBuckets; ++b) {
    index.ForEachInBucket(2, b, [&](const BlockHash& hash) {
      ++num_held;
      digest += DigestTerm(hash);
    });
  }
  EXPECT_LT(num_held, 5600);
  EXPECT_FALSE(index.complete(2));
  EXPECT_EQ(index.num_blocks(2), num_held);
  EXPECT_EQ(index.num_refused(), 5600 - num_held);
  EXPECT_EQ(index.digest(2), digest);
}

// Two chains are held throughout by different groups; everything else changes, clears included.
TEST(PrefixIndex, MatchIsRightWhileAnotherThreadWrites) {
  const auto deep = Chain(300, 1), shallow = Chain(300, 2), changing = Chain(20000, 3);
  PrefixIndex index;
  index.Add(10, deep);
  index.Add(11, First(deep, 123));
  index.Add(12, First(shallow, 77));
  std::atomic<bool> done = false;
  std::atomic<int64_t> num_wrong = 0, num_matches = 0;
  std::thread reader([&] {
    while (!done) {
      const GroupDepths a = index.Match(deep), b = index.Match(shallow);
      num_wrong += a[10] != 300 || a[11] != 123 || a[12] != 0;
      num_wrong += b[10] != 0 || b[11] != 0 || b[12] != 77;
      for (int g = 20; g < kMaxGroups; ++g) num_wrong += a[g] != 0 || b[g] != 0;
      ++num_matches;
    }
  });
  std::mt19937 random(9);
  for (int step = 0; step < 3000 || num_matches < 1000; ++step) {
    const int group = 20 + random() % 4;
    const size_t from = random() % changing.size();
    const auto blocks =
        std::span(changing).subspan(from, std::min<size_t>(500, changing.size() - from));
    if (random() % 50 == 0) {
      index.Clear(group);
    } else if (random() % 3 == 0) {
      index.Remove(group, blocks);
    } else {
      index.Add(group, blocks);
    }
  }
  done = true;
  reader.join();
  EXPECT_EQ(num_wrong, 0);
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
