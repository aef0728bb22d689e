#include "router/block_table.h"

#include <atomic>
#include <map>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace bough::router {
namespace {

BlockHash Random(std::mt19937_64* random) { return {(*random)(), (*random)()}; }

// All at one position: HashPosition mixes lo + hi * this.
BlockHash SamePosition(uint64_t i) { return {12345 - i * 0x9e3779b97f4a7c15, i}; }

uint64_t ReadOne(const BlockTable& table, const BlockHash& hash) {
  BlockTable::View view = table.Look();
  return table.Read(&view, hash, BlockTable::Prefetch(view, hash));
}

class BlockTableTest : public testing::Test {
 protected:
  bool Insert(BlockTable* table, const BlockHash& hash, uint64_t mask) {
    return table->Insert(hash, mask, [this](const BlockHash&, uint64_t) { ++num_dropped_; });
  }
  int num_dropped_ = 0;
};

TEST_F(BlockTableTest, AgreesWithAMapThroughGrowthAndErasure) {
  std::mt19937_64 random(1);
  BlockTable table(1 << 20);
  std::vector<BlockHash> hashes;
  std::map<std::pair<uint64_t, uint64_t>, uint64_t> map;
  for (int step = 0; step < 100000; ++step) {
    const bool known = !hashes.empty() && random() % 3 == 0;
    const BlockHash hash = known ? hashes[random() % hashes.size()] : Random(&random);
    if (!known) hashes.push_back(hash);
    uint64_t& mask = map[{hash.lo, hash.hi}];
    ASSERT_EQ(table.Find(hash).mask, mask);
    ASSERT_EQ(ReadOne(table, hash), mask);
    const uint64_t next = random() % 4;  // 0 = erase
    if (mask != 0) {
      table.Set(hash, table.Find(hash), next);
    } else if (next != 0) {
      ASSERT_TRUE(Insert(&table, hash, next));
    }
    mask = next;
  }
  size_t size = 0;
  for (const auto& [key, mask] : map) {
    ASSERT_EQ(ReadOne(table, {key.first, key.second}), mask);
    size += mask != 0;
  }
  EXPECT_EQ(table.size(), size);
  EXPECT_EQ(num_dropped_, 0);
}

TEST_F(BlockTableTest, ARangeOfPositionsHasItsEntriesEvenWhileTheTableGrows) {
  std::mt19937_64 random(2);
  BlockTable table(1 << 20);
  std::vector<BlockHash> hashes;
  const uint64_t first = uint64_t{3} << 60, last = (uint64_t{5} << 60) + 12345;
  size_t inside = 0;
  for (int i = 0; i < 40000; ++i) {
    hashes.push_back(Random(&random));
    ASSERT_TRUE(Insert(&table, hashes.back(), 1));
    const uint64_t position = HashPosition(hashes.back());
    inside += first <= position && position <= last;
    if (i % 97 != 0) continue;
    size_t visited = 0;
    table.ForEach(first, last, [&](const BlockHash&, uint64_t) { ++visited; });
    ASSERT_EQ(visited, inside) << "of " << i + 1;
  }
  table.Update(first, last, [](const BlockHash&, uint64_t) { return 0; });
  for (const BlockHash& hash : hashes) {
    const uint64_t position = HashPosition(hash);
    ASSERT_EQ(table.Find(hash).mask, first <= position && position <= last ? 0 : 1);
  }
  EXPECT_EQ(table.size(), hashes.size() - inside);
}

TEST_F(BlockTableTest, ManyHashesOfOnePositionAreFoundUntilNoMoreFit) {
  BlockTable table(1 << 20);
  std::vector<BlockHash> held;
  for (uint64_t i = 0; i < 500; ++i) {
    ASSERT_EQ(HashPosition(SamePosition(i)), HashPosition(SamePosition(0)));
    if (Insert(&table, SamePosition(i), i + 1)) held.push_back(SamePosition(i));
  }
  EXPECT_EQ(held.size(), size_t{7} * BlockTable::kMaxTries);
  for (const BlockHash& hash : held) EXPECT_EQ(ReadOne(table, hash), hash.hi + 1);
  for (const BlockHash& hash : held) table.Set(hash, table.Find(hash), 0);
  EXPECT_EQ(table.size(), 0u);
  EXPECT_TRUE(Insert(&table, SamePosition(0), 1));
}

TEST_F(BlockTableTest, EntriesThatFindNoPlaceWhenItGrowsAreReported) {
  std::mt19937_64 random(3);
  BlockTable table(1 << 20);
  int held = 0;
  for (uint64_t i = 0; i < 440; ++i) held += Insert(&table, SamePosition(i), 1);
  for (int i = 0; i < 5000; ++i) held += Insert(&table, Random(&random), 1);
  EXPECT_EQ(table.size(), static_cast<size_t>(held - num_dropped_));
}

TEST_F(BlockTableTest, HoldsNoMoreThanItsCap) {
  std::mt19937_64 random(4);
  BlockTable table(1000);
  int held = 0;
  for (int i = 0; i < 3000; ++i) held += Insert(&table, Random(&random), 1);
  EXPECT_EQ(held, 1000);
  EXPECT_EQ(table.size(), 1000u);
}

TEST_F(BlockTableTest, TakesUpTo40BytesAnEntryFromAMillionOn) {
  std::mt19937_64 random(5);
  BlockTable table(1 << 22);
  for (int i = 1; i <= 2000000; ++i) {
    ASSERT_TRUE(Insert(&table, Random(&random), 1));
    if (i >= 1000000 && i % 1000 == 0) {
      ASSERT_LE(table.bytes(), 40.0 * i) << i;
    }
  }
}

// One slot has one key after the other.
TEST_F(BlockTableTest, AReaderNeverTakesTheMaskOfTheKeyThatFollowsInASlot) {
  constexpr uint64_t kKeys = 5;
  BlockTable table(1000);
  std::atomic<bool> done = false;
  std::atomic<int64_t> num_found = 0, num_wrong = 0;
  std::thread reader([&] {
    BlockTable::View view = table.Look();
    for (uint64_t i = 0; !done; ++i) {
      const BlockHash hash = SamePosition(i % kKeys);
      const uint64_t mask = table.Read(&view, hash, HashPosition(hash));
      num_found += mask != 0;
      num_wrong += mask != 0 && mask != hash.hi + 1;
    }
  });
  for (uint64_t i = 0; i < 3000000 || num_found < 1000; ++i) {
    const BlockHash hash = SamePosition(i % kKeys);
    ASSERT_TRUE(Insert(&table, hash, hash.hi + 1));
    table.Set(hash, table.Find(hash), 0);
  }
  done = true;
  reader.join();
  EXPECT_EQ(num_wrong, 0);
}

// A key's mask is never 0 nor another key's, while the writer grows the table and reuses slots.
TEST_F(BlockTableTest, ReadersSeeEveryKeyWithItsOwnMaskWhileTheTableChanges) {
  std::mt19937_64 random(6);
  auto mask_of = [](const BlockHash& hash) { return hash.hi | 1; };
  BlockTable table(1 << 20);
  std::vector<BlockHash> kept;
  for (int i = 0; i < 200; ++i) {
    kept.push_back(Random(&random));
    ASSERT_TRUE(Insert(&table, kept.back(), mask_of(kept.back())));
  }
  std::vector<BlockHash> others;
  for (int i = 0; i < 60000; ++i) others.push_back(Random(&random));

  std::atomic<bool> done = false;
  std::atomic<int64_t> num_wrong = 0, num_reads = 0;
  auto read = [&](int seed) {
    std::mt19937_64 random(seed);
    BlockTable::View view = table.Look();
    while (!done) {
      for (int i = 0; i < 100; ++i) {
        const BlockHash& stays = kept[random() % kept.size()];
        num_wrong += table.Read(&view, stays, HashPosition(stays)) != mask_of(stays);
        const BlockHash& moves = others[random() % others.size()];
        const uint64_t mask = table.Read(&view, moves, HashPosition(moves));
        num_wrong += mask != 0 && mask != mask_of(moves);
      }
      num_reads += 200;
    }
  };
  std::thread one(read, 7), two(read, 8);
  std::vector<bool> in(others.size());
  for (int step = 0; step < 200000 || num_reads < 100000; ++step) {
    const size_t reach = std::min(others.size(), size_t{100} + step / 4);
    const size_t i = random() % reach;
    if (in[i]) {
      table.Set(others[i], table.Find(others[i]), 0);
    } else {
      ASSERT_TRUE(Insert(&table, others[i], mask_of(others[i])));
    }
    in[i] = !in[i];
  }
  done = true;
  one.join();
  two.join();
  EXPECT_EQ(num_wrong, 0);
}

}  // namespace
}  // namespace bough::router
