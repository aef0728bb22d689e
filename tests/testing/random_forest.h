// Random batches for attention in which sequences share keys through nested nodes.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/attention.h"
#include "tests/testing/inputs.h"

namespace bough {

struct SequenceShape {
  int num_q = 1, seqlen_kv = 1;
};

struct ForestShape {
  std::vector<SequenceShape> seqs;
  std::vector<SharedNode> nodes;
};

struct ForestLimits {
  int max_seqs = 8, max_node_blocks = 3, block_size = 64;
  int max_own_keys = 100;  // beside the queries' own
  int max_q = 1;
};

class RandomForestMaker {
 public:
  RandomForestMaker(Random& random, const ForestLimits& limits)
      : random_(random), limits_(limits), own_begin_(RandomInt(random, 1, limits.max_seqs), 0) {}

  ForestShape Make() {
    const int num_seqs = static_cast<int>(own_begin_.size());
    AddNodes(0, num_seqs, 0, 0);
    // As a padded batch ends: nodes that stand for nothing, as far as a forest may have more.
    const int room = kMaxForestDepth * num_seqs - static_cast<int>(forest_.nodes.size());
    forest_.nodes.resize(forest_.nodes.size() + std::min(room, RandomInt(random_, 0, 2)),
                         {num_seqs, num_seqs});
    for (int own_begin : own_begin_) {
      const bool has_keys = own_begin > 0 || RandomInt(random_, 0, 9) > 0;
      const int num_q = has_keys ? RandomInt(random_, 1, limits_.max_q) : 1;
      const int num_own = has_keys ? num_q + RandomInt(random_, 0, limits_.max_own_keys) : 0;
      forest_.seqs.push_back({num_q, own_begin + num_own});
    }
    return forest_;
  }

 private:
  // Cuts sequences [begin, end), which share keys [0, key_begin), into runs; two of three share more.
  void AddNodes(int begin, int end, int key_begin, int depth) {
    for (int next; begin < end && depth < kMaxForestDepth; begin = next) {
      next = RandomInt(random_, begin + 1, end);
      if (RandomInt(random_, 0, 2) == 0) continue;
      const int num_blocks = RandomInt(random_, 1, limits_.max_node_blocks);
      const int key_end = key_begin + num_blocks * limits_.block_size;
      forest_.nodes.push_back({begin, next, key_begin, key_end});
      std::fill(own_begin_.begin() + begin, own_begin_.begin() + next, key_end);
      AddNodes(begin, next, key_end, depth + 1);
    }
  }

  Random& random_;
  const ForestLimits limits_;
  std::vector<int> own_begin_;
  ForestShape forest_;
};

inline ForestShape RandomForest(Random& random, const ForestLimits& limits) {
  return RandomForestMaker(random, limits).Make();
}

}  // namespace bough
