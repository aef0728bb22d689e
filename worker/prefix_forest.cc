#include "worker/prefix_forest.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "common/block_hash.h"

namespace bough {
namespace {

constexpr int kNone = -1;
// Branchings on the way to a row; what branches further down is not shared further. Bounds the time
// of a trie that is a chain.
constexpr int kMaxLevels = 64;

// Rows order_[begin, end) agree on exactly `depth` leading blocks. The root may have depth 0.
struct Node {
  int begin, end;
  int depth;
  int parent;  // or kNone
  int level;   // nodes above
};

class Trie {
 public:
  Trie(std::span<const DecodeRow> rows, const ForestCosts& costs)
      : rows_(rows), costs_(costs), order_(rows.size()) {
    std::iota(order_.begin(), order_.end(), 0);
    if (rows.size() > 1) Build(0, static_cast<int>(rows.size()), kNone, 0);
  }

  PrefixForest Forest() {
    ValueBelow();
    PrefixForest forest;
    forest.own_begin.assign(rows_.size(), 0);
    // From the root down: how many nodes are shared down to each, and which is the last of them.
    std::vector<int> num_shared(nodes_.size(), 0), last_level(nodes_.size(), kNone);
    const bool pays = !nodes_.empty() && BestOf(0, kNone, 0, 0).first > costs_.forest;
    for (size_t id = 0; pays && id < nodes_.size(); ++id) {
      const Node& node = nodes_[id];
      if (node.parent != kNone) {
        num_shared[id] = num_shared[node.parent];
        last_level[id] = last_level[node.parent];
      }
      const int key_begin = forest.own_begin[node.begin], key_end = node.depth * kBlockSize;
      if (!BestOf(id, last_level[id], num_shared[id], key_begin / kBlockSize).second) continue;
      forest.nodes.push_back({node.begin, node.end, key_begin, key_end});
      forest.num_blocks_read += (key_end - key_begin) / kBlockSize;
      std::fill(forest.own_begin.begin() + node.begin, forest.own_begin.begin() + node.end,
                key_end);
      ++num_shared[id];
      last_level[id] = node.level;
    }
    for (size_t i = 0; i < order_.size(); ++i) {
      const int num_blocks = (rows_[order_[i]].seqlen_kv + kBlockSize - 1) / kBlockSize;
      forest.num_blocks_read += num_blocks - forest.own_begin[i] / kBlockSize;
      if (forest.own_begin[i] > 0) ++forest.num_shared_rows;
    }
    forest.order = std::move(order_);
    return forest;
  }

 private:
  // Blocks of a row that may be shared.
  int Limit(int32_t row) const { return (rows_[row].seqlen_kv - 1) / kBlockSize; }
  const int32_t* Table(int32_t row) const { return rows_[row].block_table.data(); }

  // How many blocks order_[begin, end) have in common, which agree on `depth`.
  int CommonBlocks(int begin, int end, int depth) const {
    const int32_t first = order_[begin];
    int common = Limit(first);
    for (int i = begin + 1; i < end; ++i) {
      common = std::min(common, Limit(order_[i]));
      const int32_t *a = Table(first) + depth, *b = Table(order_[i]) + depth;
      if (std::memcmp(a, b, (common - depth) * sizeof(int32_t)) == 0) continue;
      common = depth + static_cast<int>(std::mismatch(a, a + (common - depth), b).first - a);
    }
    return common;
  }

  // The node of order_[begin, end) and those below it, which it sorts: depth first.
  void Build(int begin, int end, int parent, int level) {
    const int common = CommonBlocks(begin, end, parent == kNone ? 0 : nodes_[parent].depth);
    const int id = static_cast<int>(nodes_.size());
    nodes_.push_back({begin, end, common, parent, level});
    if (level + 1 == kMaxLevels) return;
    // By next block; rows that end here come first.
    keyed_.clear();
    for (int i = begin; i < end; ++i) {
      const int32_t row = order_[i];
      keyed_.emplace_back(Limit(row) > common ? Table(row)[common] : kNone, row);
    }
    std::sort(keyed_.begin(), keyed_.end());
    std::vector<std::pair<int, int>> branches;
    for (int i = begin, j = begin; i < end; i = j) {
      const int32_t block = keyed_[i - begin].first;
      for (; j < end && keyed_[j - begin].first == block; ++j) order_[j] = keyed_[j - begin].second;
      if (block != kNone && j > i + 1) branches.emplace_back(i, j);
    }
    for (const auto& [from, to] : branches) Build(from, to, id, level + 1);
  }

  // What the nodes below `id` save at best, when the last one shared on the way to them has this
  // level (kNone: none) and `num_shared` are.
  double& Below(size_t id, int last_level, int num_shared) {
    return below_[below_begin_[id] + (last_level + 1) * (kMaxForestDepth + 1) + num_shared];
  }

  // What sharing the node saves against reading `num_blocks` of it by rows.
  double Saved(const Node& node, int num_blocks) const {
    const int num_rows = node.end - node.begin;
    return (num_rows - 1.0) * num_blocks - costs_.part * num_rows - costs_.node;
  }

  // Values of all nodes, children before parents.
  void ValueBelow() {
    for (const Node& node : nodes_) {
      below_begin_.push_back(below_.size());
      below_.resize(below_.size() + (node.level + 2) * (kMaxForestDepth + 1), 0.0);
    }
    for (size_t id = nodes_.size(); id-- > 1;) {
      const int parent = nodes_[id].parent;
      for (int above = parent;; above = nodes_[above].parent) {
        const int level = above == kNone ? kNone : nodes_[above].level;
        const int depth = above == kNone ? 0 : nodes_[above].depth;
        // No more are shared above than there are.
        for (int n = 0; n <= std::min(level + 1, kMaxForestDepth); ++n) {
          Below(parent, level, n) += BestOf(id, level, n, depth).first;
        }
        if (above == kNone) break;
      }
    }
  }

  // The most that `id` and the nodes below save, and whether it is shared then.
  std::pair<double, bool> BestOf(size_t id, int last_level, int num_shared, int depth_above) {
    const double pushed_down = Below(id, last_level, num_shared);
    if (num_shared == kMaxForestDepth) return {pushed_down, false};
    const Node& node = nodes_[id];
    const double shared =
        Saved(node, node.depth - depth_above) + Below(id, node.level, num_shared + 1);
    return {std::max(shared, pushed_down), shared > pushed_down};
  }

  std::span<const DecodeRow> rows_;
  const ForestCosts costs_;
  std::vector<int32_t> order_;
  std::vector<std::pair<int32_t, int32_t>> keyed_;  // next block and row, while a node is built
  std::vector<Node> nodes_;                         // depth first
  std::vector<double> below_;
  std::vector<size_t> below_begin_;  // of each node
};

}  // namespace

PrefixForest BuildPrefixForest(std::span<const DecodeRow> rows, const ForestCosts& costs) {
  return Trie(rows, costs).Forest();
}

}  // namespace bough
