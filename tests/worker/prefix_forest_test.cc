#include "worker/prefix_forest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <set>
#include <tuple>

#include "common/block_hash.h"

namespace bough {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Table = std::vector<int32_t>;

// Rows whose last block is open: it holds one token.
std::vector<DecodeRow> RowsOf(const std::vector<Table>& tables) {
  std::vector<DecodeRow> rows;
  for (const Table& t : tables) {
    rows.push_back({t, static_cast<int32_t>(t.size() - 1) * kBlockSize + 1});
  }
  return rows;
}

// Of rows i and j, their last blocks excepted.
int CommonBlocks(const std::vector<Table>& tables, int i, int j) {
  const Table &a = tables[i], &b = tables[j];
  const auto limit = static_cast<int>(std::min(a.size(), b.size())) - 1;
  return static_cast<int>(std::mismatch(a.begin(), a.begin() + limit, b.begin()).first - a.begin());
}

// Rows that agree on their first `depth` blocks.
struct Candidate {
  std::set<int> rows;
  int depth;
  bool operator<(const Candidate& o) const {
    return std::tie(depth, rows) < std::tie(o.depth, o.rows);
  }
};

// Where any two rows part, outer ones first.
std::set<Candidate> CandidatesOf(const std::vector<Table>& tables) {
  std::set<Candidate> candidates;
  for (size_t i = 0; i < tables.size(); ++i) {
    for (size_t j = i + 1; j < tables.size(); ++j) {
      Candidate c = {{static_cast<int>(i)}, CommonBlocks(tables, i, j)};
      for (size_t k = 0; k < tables.size(); ++k) {
        if (k != i && CommonBlocks(tables, i, k) >= c.depth) c.rows.insert(static_cast<int>(k));
      }
      if (c.depth > 0) candidates.insert(c);
    }
  }
  return candidates;
}

// Of all choices among the candidates, the one that saves most.
double MostSaved(const std::vector<Table>& tables, const ForestCosts& costs) {
  const std::set<Candidate> candidates = CandidatesOf(tables);
  double most = 0;
  for (int choice = 0; choice < 1 << candidates.size(); ++choice) {
    std::vector<int> covered(tables.size(), 0), num_around(tables.size(), 0);
    double saved = 0;
    int bit = 0;
    for (const Candidate& c : candidates) {
      if ((choice >> bit++ & 1) == 0) continue;
      const int num_blocks = c.depth - covered[*c.rows.begin()];
      saved += (c.rows.size() - 1.0) * num_blocks - costs.part * c.rows.size() - costs.node;
      for (int row : c.rows) {
        covered[row] = c.depth;
        if (++num_around[row] > kMaxForestDepth) saved = -1e9;
      }
    }
    most = std::max(most, saved);
  }
  return most;
}

// EXPECTs what attention.h and prefix_forest.h promise; returns what the forest saves.
double Verify(const std::vector<Table>& tables, const PrefixForest& f, const ForestCosts& costs) {
  const auto num_rows = static_cast<int>(tables.size());
  std::vector<int32_t> sorted = f.order;
  std::sort(sorted.begin(), sorted.end());
  for (int i = 0; i < num_rows; ++i) EXPECT_EQ(sorted.at(i), i);
  EXPECT_EQ(f.order.size(), tables.size());

  std::vector<int> covered(num_rows, 0), num_around(num_rows, 0);
  double saved = 0;
  int64_t num_blocks_read = 0;
  std::pair<int, int> last = {-1, 0};
  for (const SharedNode& node : f.nodes) {
    EXPECT_LT(last, std::pair(node.seq_begin, node.key_begin));
    last = {node.seq_begin, node.key_begin};
    EXPECT_LT(node.seq_begin + 1, node.seq_end);
    EXPECT_LT(node.key_begin, node.key_end);
    const int depth = node.key_end / kBlockSize;
    const int num_blocks = depth - node.key_begin / kBlockSize,
              size = node.seq_end - node.seq_begin;
    for (int place = node.seq_begin; place < node.seq_end; ++place) {
      EXPECT_EQ(covered.at(place), node.key_begin);
      covered[place] = node.key_end;
      EXPECT_LE(++num_around[place], kMaxForestDepth);
      const Table &table = tables[f.order[place]], &first = tables[f.order[node.seq_begin]];
      EXPECT_LT(depth, static_cast<int>(table.size()));  // the last block is never shared
      EXPECT_TRUE(std::equal(table.begin(), table.begin() + depth, first.begin()));
    }
    saved += (size - 1.0) * num_blocks - costs.part * size - costs.node;
    num_blocks_read += num_blocks;
  }
  EXPECT_EQ(f.own_begin, covered);
  int num_shared_rows = 0;
  for (int place = 0; place < num_rows; ++place) {
    num_blocks_read +=
        static_cast<int64_t>(tables[f.order[place]].size()) - covered[place] / kBlockSize;
    num_shared_rows += covered[place] > 0;
  }
  EXPECT_EQ(f.num_blocks_read, num_blocks_read);
  EXPECT_EQ(f.num_shared_rows, num_shared_rows);
  return saved;
}

std::vector<std::array<int, 4>> NodesOf(const PrefixForest& f) {
  std::vector<std::array<int, 4>> nodes;
  for (const SharedNode& n : f.nodes) {
    nodes.push_back({n.seq_begin, n.seq_end, n.key_begin / kBlockSize, n.key_end / kBlockSize});
  }
  return nodes;
}

TEST(PrefixForest, NoRowsGiveNoNodes) {
  const PrefixForest f = BuildPrefixForest({});
  EXPECT_THAT(f.order, IsEmpty());
  EXPECT_THAT(f.nodes, IsEmpty());
  EXPECT_THAT(f.own_begin, IsEmpty());
}

TEST(PrefixForest, RowsThatShareNothingMakeNoNodes) {
  const std::vector<Table> tables = {{1, 2}, {3, 4}, {5}};
  const PrefixForest f = BuildPrefixForest(RowsOf(tables));
  EXPECT_THAT(f.nodes, IsEmpty());
  EXPECT_THAT(f.own_begin, ElementsAre(0, 0, 0));
  EXPECT_EQ(f.num_shared_rows, 0);
  EXPECT_EQ(f.num_blocks_read, 5);
}

TEST(PrefixForest, SharersStandTogether) {
  const std::vector<Table> tables = {{1, 2, 10}, {7, 11}, {1, 2, 12}, {1, 2, 13}};
  const PrefixForest f = BuildPrefixForest(RowsOf(tables));
  EXPECT_THAT(f.order, ElementsAre(0, 2, 3, 1));
  EXPECT_THAT(NodesOf(f), ElementsAre(std::array{0, 3, 0, 2}));
  EXPECT_EQ(f.num_shared_rows, 3);
}

// A system prompt of three blocks, two documents of three behind it, and two questions to each.
TEST(PrefixForest, NodesStandInNodes) {
  const std::vector<Table> tables = {{0, 1, 2, 3, 4, 5, 10},
                                     {0, 1, 2, 6, 7, 8, 11},
                                     {0, 1, 2, 3, 4, 5, 12},
                                     {0, 1, 2, 6, 7, 8, 13}};
  const PrefixForest f = BuildPrefixForest(RowsOf(tables));
  EXPECT_THAT(f.order, ElementsAre(0, 2, 1, 3));
  EXPECT_THAT(NodesOf(f),
              ElementsAre(std::array{0, 4, 0, 3}, std::array{0, 2, 3, 6}, std::array{2, 4, 3, 6}));
  EXPECT_EQ(f.num_blocks_read, 3 + 3 + 3 + 4);
}

TEST(PrefixForest, TwoBlocksPayForTwoRowsAndOneDoesNot) {
  const std::vector<Table> two = {{1, 2, 10}, {1, 2, 11}}, one = {{1, 10}, {1, 11}};
  EXPECT_THAT(BuildPrefixForest(RowsOf(two)).own_begin, ElementsAre(128, 128));
  EXPECT_THAT(BuildPrefixForest(RowsOf(one)).own_begin, ElementsAre(0, 0));
}

// One block below the system prompt is not worth a level: the pairs read it by themselves.
TEST(PrefixForest, WhatDoesNotPayIsPushedDown) {
  const std::vector<Table> tables = {{1, 2, 3, 10}, {1, 2, 3, 11}, {1, 2, 4, 12}, {1, 2, 4, 13}};
  EXPECT_THAT(NodesOf(BuildPrefixForest(RowsOf(tables))), ElementsAre(std::array{0, 4, 0, 2}));
  const ForestCosts dear = {.part = 1.5, .node = 0};  // 6 - 6 for all, 3 - 3 for the pairs
  EXPECT_THAT(NodesOf(BuildPrefixForest(RowsOf(tables), dear)), IsEmpty());
}

TEST(PrefixForest, AForestThatSavesNoMoreThanItCostsIsNone) {
  const std::vector<Table> tables = {{1, 2, 3, 10}, {1, 2, 3, 11}, {1, 2, 3, 12}};
  ForestCosts costs = {.part = 0.5, .node = 0.5, .forest = 3.9};  // six blocks less two
  EXPECT_EQ(BuildPrefixForest(RowsOf(tables), costs).nodes.size(), 1u);
  costs.forest = 4;
  const PrefixForest none = BuildPrefixForest(RowsOf(tables), costs);
  EXPECT_THAT(none.nodes, IsEmpty());
  EXPECT_EQ(none.num_blocks_read, 12);
}

TEST(PrefixForest, TheBlockOfTheNewestTokenIsNeverShared) {
  const Table table = {1, 2, 3};
  const std::vector<DecodeRow> rows(2, {table, 3 * kBlockSize});
  EXPECT_THAT(BuildPrefixForest(rows).own_begin, ElementsAre(128, 128));
}

TEST(PrefixForest, SavesAsMuchAsTheBestOfAllForests) {
  std::mt19937 rng(1);
  const auto pick = [&](int lo, int hi) { return std::uniform_int_distribution<int>(lo, hi)(rng); };
  double total = 0;
  for (int trial = 0; trial < 5000 && !HasFailure(); ++trial) {
    std::vector<Table> tables(pick(1, 8));
    for (size_t i = 0; i < tables.size(); ++i) {
      // Branches off an earlier row somewhere; block ids are new from there on.
      const Table base = i > 0 ? tables[pick(0, static_cast<int>(i) - 1)] : Table{};
      const int kept = base.empty() ? 0 : pick(0, static_cast<int>(base.size()) - 1);
      tables[i].assign(base.begin(), base.begin() + kept);
      for (int more = pick(1, 5); more > 0; --more) {
        tables[i].push_back(static_cast<int32_t>(100 * i + tables[i].size()));
      }
    }
    const ForestCosts costs = {.part = pick(0, 4) * 0.25, .node = pick(0, 4) * 0.25};
    const double saved = Verify(tables, BuildPrefixForest(RowsOf(tables), costs), costs);
    EXPECT_EQ(saved, MostSaved(tables, costs)) << "trial " << trial;
    total += saved;
  }
  EXPECT_GT(total, 5000);
}

// Each row goes on from the one before: a chain of nodes, of which four stand around a row at most.
TEST(PrefixForest, AChainOfThreeHundredRows) {
  std::vector<Table> tables(300);
  for (int i = 0; i < 300; ++i) {
    for (int b = 0; b < 3 * (i + 1); ++b) tables[i].push_back(b);
    tables[i].push_back(10'000 + i);
  }
  const ForestCosts costs;
  EXPECT_GT(Verify(tables, BuildPrefixForest(RowsOf(tables), costs), costs), 0);
}

TEST(PrefixForest, ThousandsOfSamplesOfOnePromptAreOneNode) {
  for (int num_rows : {1024, 2048}) {
    std::vector<Table> tables(num_rows);
    for (int i = 0; i < num_rows; ++i) {
      for (int b = 0; b < 128; ++b) tables[i].push_back(b);
      tables[i].push_back(1000 + i);
    }
    const PrefixForest f = BuildPrefixForest(RowsOf(tables));
    EXPECT_THAT(NodesOf(f), ElementsAre(std::array{0, num_rows, 0, 128}));
    EXPECT_EQ(f.num_blocks_read, 128 + num_rows);
  }
}

}  // namespace
}  // namespace bough
