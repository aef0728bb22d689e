#include "worker/prefix_forest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "common/block_hash.h"

namespace bough {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

using Table = std::vector<int32_t>;

// Rows whose last block is open: it holds one token.
std::vector<DecodeRow> RowsOf(const std::vector<Table>& tables) {
  std::vector<DecodeRow> rows;
  for (const Table& t : tables) {
    rows.push_back({t, static_cast<int32_t>(t.size() - 1) * kBlockSize + 1});
  }
  return rows;
}

int CommonBlocks(const std::vector<Table>& tables, const std::vector<int>& members) {
  int common = static_cast<int>(tables[members[0]].size()) - 1;
  for (int i : members) {
    const Table &a = tables[members[0]], &b = tables[i];
    const int limit = std::min(common, static_cast<int>(b.size()) - 1);
    common =
        static_cast<int>(std::mismatch(a.begin(), a.begin() + limit, b.begin()).first - a.begin());
  }
  return common;
}

int64_t SavedBlocks(const std::vector<Table>& tables, const std::vector<std::vector<int>>& groups) {
  int64_t saved = 0;
  for (const auto& g : groups) saved += (g.size() - 1) * CommonBlocks(tables, g);
  return saved;
}

// Over all partitions of the rows.
int64_t MostSavedBlocks(const std::vector<Table>& tables, size_t next,
                        std::vector<std::vector<int>>* groups) {
  if (next == tables.size()) return SavedBlocks(tables, *groups);
  int64_t best = 0;
  for (size_t g = 0; g <= groups->size(); ++g) {
    const bool is_new = g == groups->size();
    if (is_new) groups->emplace_back();
    (*groups)[g].push_back(static_cast<int>(next));
    best = std::max(best, MostSavedBlocks(tables, next + 1, groups));
    (*groups)[g].pop_back();
    if (is_new) {
      groups->pop_back();
      break;
    }
  }
  return best;
}

// CHECKs what the header promises; returns the blocks saved.
int64_t Verify(const std::vector<Table>& tables, const PrefixForest& f) {
  EXPECT_TRUE(std::is_permutation(f.order.begin(), f.order.end(),
                                  [&] {
                                    std::vector<int32_t> all(tables.size());
                                    for (size_t i = 0; i < all.size(); ++i)
                                      all[i] = static_cast<int32_t>(i);
                                    return all;
                                  }()
                                      .begin()));
  EXPECT_EQ(f.order.size(), tables.size());
  EXPECT_EQ(f.group_start.front(), 0);
  EXPECT_EQ(f.group_start.back(), static_cast<int32_t>(tables.size()));
  int64_t saved = 0, total = 0;
  for (size_t g = 0; g < f.prefix_len.size(); ++g) {
    std::vector<int> members(f.order.begin() + f.group_start[g],
                             f.order.begin() + f.group_start[g + 1]);
    EXPECT_FALSE(members.empty());
    const int depth = f.prefix_len[g] / kBlockSize;
    EXPECT_LE(depth, CommonBlocks(tables, members));
    saved += (static_cast<int64_t>(members.size()) - 1) * depth;
  }
  for (const Table& t : tables) total += static_cast<int64_t>(t.size());
  EXPECT_EQ(f.num_blocks_read, total - saved);
  return saved;
}

TEST(PrefixForest, NoRowsGiveNoGroups) {
  const PrefixForest f = BuildPrefixForest({});
  EXPECT_THAT(f.order, IsEmpty());
  EXPECT_THAT(f.group_start, ElementsAre(0));
  EXPECT_THAT(f.prefix_len, IsEmpty());
}

TEST(PrefixForest, RowsThatShareNothingAreOneGroupWithoutPrefix) {
  const std::vector<Table> tables = {{1, 2}, {3, 4}, {5}};
  const PrefixForest f = BuildPrefixForest(RowsOf(tables));
  EXPECT_THAT(f.prefix_len, ElementsAre(0));
  EXPECT_EQ(f.num_shared_rows, 0);
}

TEST(PrefixForest, SharersStandTogether) {
  const std::vector<Table> tables = {{1, 2, 10}, {7, 11}, {1, 2, 12}, {1, 2, 13}};
  const PrefixForest f = BuildPrefixForest(RowsOf(tables));
  EXPECT_THAT(f.order, ElementsAre(0, 2, 3, 1));
  EXPECT_THAT(f.group_start, ElementsAre(0, 3, 4));
  EXPECT_THAT(f.prefix_len, ElementsAre(2 * kBlockSize, 0));
  EXPECT_EQ(f.num_shared_rows, 3);
}

TEST(PrefixForest, DeepBranchesSplitAndTheRestSharesTheTrunk) {
  const std::vector<Table> tables = {{1, 2, 3, 4, 10}, {1, 2, 3, 4, 11}, {1, 5, 12}, {1, 6, 13}};
  const PrefixForest f = BuildPrefixForest(RowsOf(tables));
  EXPECT_THAT(f.prefix_len, UnorderedElementsAre(4 * kBlockSize, kBlockSize));
  EXPECT_EQ(Verify(tables, f), 4 + 1);
}

TEST(PrefixForest, TheBlockOfTheNewestTokenIsNeverShared) {
  const Table table = {1, 2};
  const std::vector<DecodeRow> rows(2, {table, 2 * kBlockSize});
  EXPECT_THAT(BuildPrefixForest(rows).prefix_len, ElementsAre(kBlockSize));
}

TEST(PrefixForest, SavesAsMuchAsTheBestOfAllPartitions) {
  std::mt19937 rng(1);
  const auto pick = [&](int lo, int hi) { return std::uniform_int_distribution<int>(lo, hi)(rng); };
  int64_t total = 0;
  for (int trial = 0; trial < 2000 && !HasFailure(); ++trial) {
    std::vector<Table> tables(pick(1, 7));
    for (size_t i = 0; i < tables.size(); ++i) {
      // Branches off an earlier row somewhere; block ids are new from there on.
      const Table base = i > 0 ? tables[pick(0, static_cast<int>(i) - 1)] : Table{};
      const int kept = base.empty() ? 0 : pick(0, static_cast<int>(base.size()) - 1);
      tables[i].assign(base.begin(), base.begin() + kept);
      for (int more = pick(1, 5); more > 0; --more) {
        tables[i].push_back(static_cast<int32_t>(100 * i + tables[i].size()));
      }
    }
    std::vector<std::vector<int>> groups;
    const int64_t saved = Verify(tables, BuildPrefixForest(RowsOf(tables)));
    EXPECT_EQ(saved, MostSavedBlocks(tables, 0, &groups)) << "trial " << trial;
    total += saved;
  }
  EXPECT_GT(total, 2000);
}

TEST(PrefixForest, AThousandSamplesOfOnePromptAreOneGroup) {
  std::vector<Table> tables(1024);
  for (int i = 0; i < 1024; ++i) {
    for (int b = 0; b < 128; ++b) tables[i].push_back(b);
    tables[i].push_back(1000 + i);
  }
  const PrefixForest f = BuildPrefixForest(RowsOf(tables));
  EXPECT_THAT(f.prefix_len, ElementsAre(128 * kBlockSize));
  EXPECT_EQ(Verify(tables, f), 1023 * 128);
}

}  // namespace
}  // namespace bough
