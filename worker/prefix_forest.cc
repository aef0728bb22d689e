#include "worker/prefix_forest.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "common/block_hash.h"

namespace bough {
namespace {

constexpr int kNone = -1;

// An inner node: rows that agree on exactly `depth` leading blocks. The root may have depth 0.
struct Node {
  int depth = 0;
  int first_child = kNone, next_sibling = kNone;  // inner nodes
  std::vector<int32_t> leaves;  // rows that end here or share no more with another
  int64_t value_as_group = 0;   // best saving below this node, if it is a group
};

class Trie {
 public:
  explicit Trie(std::span<const DecodeRow> rows) : rows_(rows), order_(rows.size()) {
    std::iota(order_.begin(), order_.end(), 0);
    if (!rows.empty()) Build(0, static_cast<int>(rows.size()), 0);
  }

  PrefixForest Partition() {
    PrefixForest forest;
    forest.group_start.push_back(0);
    if (nodes_.empty()) return forest;
    std::vector<int32_t> alone;  // rows that share with nobody
    Assign(/*id=*/0, /*depth=*/0, &alone, &forest);
    AddGroup(alone, 0, &forest);
    return forest;
  }

 private:
  // Blocks of a row that may be shared.
  int Limit(int32_t row) const { return (rows_[row].seqlen_kv - 1) / kBlockSize; }
  const int32_t* Table(int32_t row) const { return rows_[row].block_table.data(); }

  // The node of order_[begin, end), which agree on `depth` blocks. Parents come before children.
  int Build(int begin, int end, int depth) {
    const int32_t first = order_[begin];
    int common = Limit(first);
    for (int i = begin + 1; i < end; ++i) {
      common = std::min(common, Limit(order_[i]));
      const int32_t *a = Table(first) + depth, *b = Table(order_[i]) + depth;
      if (std::memcmp(a, b, (common - depth) * sizeof(int32_t)) == 0) continue;
      common = depth + static_cast<int>(std::mismatch(a, a + (common - depth), b).first - a);
    }
    const int id = static_cast<int>(nodes_.size());
    nodes_.emplace_back().depth = common;
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
      if (block == kNone || j == i + 1) {
        nodes_[id].leaves.insert(nodes_[id].leaves.end(), order_.begin() + i, order_.begin() + j);
      } else {
        branches.emplace_back(i, j);
      }
    }
    for (const auto& [from, to] : branches) {
      const int child = Build(from, to, common);
      nodes_[child].next_sibling = nodes_[id].first_child;
      nodes_[id].first_child = child;
    }
    nodes_[id].value_as_group = Below(id, common) - common;
    return id;
  }

  // Best saving below `id` when the deepest group above it has `depth`: the node itself is none.
  int64_t Below(int id, int depth) const {
    int64_t value = static_cast<int64_t>(nodes_[id].leaves.size()) * depth;
    for (int c = nodes_[id].first_child; c != kNone; c = nodes_[c].next_sibling) {
      value += std::max(nodes_[c].value_as_group, Below(c, depth));
    }
    return value;
  }

  // Puts the rows below `id` into `group` (of the deepest group above, with `depth`) or groups of
  // their own.
  void Assign(int id, int depth, std::vector<int32_t>* group, PrefixForest* forest) const {
    const Node& node = nodes_[id];
    std::vector<int32_t> own;
    const bool is_group = node.value_as_group > Below(id, depth);
    if (is_group) {
      group = &own;
      depth = node.depth;
    }
    group->insert(group->end(), node.leaves.begin(), node.leaves.end());
    for (int c = node.first_child; c != kNone; c = nodes_[c].next_sibling) {
      Assign(c, depth, group, forest);
    }
    if (is_group) AddGroup(own, depth, forest);
  }

  void AddGroup(const std::vector<int32_t>& members, int depth, PrefixForest* forest) const {
    if (members.empty()) return;
    forest->order.insert(forest->order.end(), members.begin(), members.end());
    forest->group_start.push_back(static_cast<int32_t>(forest->order.size()));
    forest->prefix_len.push_back(depth * kBlockSize);
    for (int32_t row : members) {
      forest->num_blocks_read += (rows_[row].seqlen_kv + kBlockSize - 1) / kBlockSize - depth;
    }
    forest->num_blocks_read += depth;
    if (depth > 0) forest->num_shared_rows += static_cast<int>(members.size());
  }

  std::span<const DecodeRow> rows_;
  std::vector<int32_t> order_;
  std::vector<std::pair<int32_t, int32_t>> keyed_;  // next block and row, while a node is built
  std::vector<Node> nodes_;
};

}  // namespace

PrefixForest BuildPrefixForest(std::span<const DecodeRow> rows) { return Trie(rows).Partition(); }

}  // namespace bough
