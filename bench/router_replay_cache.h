// A group's KV blocks in the replay: finite, shared by equal prefixes, evicted least recently used and
// leaf first.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace bough {

// A block is private (of one request, unnamed), pinned (named, in use) or idle (named, only cached).
// Idle blocks stand in a list by the time they were last used; of one chain the deepest is the oldest,
// so a block never outlives its children.
class ReplayCache {
 public:
  ReplayCache(int num_ids, int capacity);

  // Leading blocks of the chain that are here.
  int Match(std::span<const int> chain) const;
  // Takes `count` private blocks, evicting idle ones; false when the rest is in use.
  bool Reserve(int count);
  void Release(int count) { num_private_ -= count; }
  // Uses a block that is here.
  void Pin(int id);
  // A private block has been filled and is named `id` from now on, and pinned.
  void Store(int id);
  // The chain's blocks are used no more; the deepest first.
  void Unpin(std::span<const int> chain);

  int num_used() const { return num_private_ + num_pinned_; }
  int num_idle() const { return num_idle_; }
  int num_free() const { return capacity_ - num_used() - num_idle_; }
  int capacity() const { return capacity_; }

 private:
  struct Block {
    bool here = false;
    int pins = 0;
    int older = -1, newer = -1;  // neighbours while idle
  };
  void Link(int id);
  void Unlink(int id);

  std::vector<Block> blocks_;
  int capacity_;
  int oldest_ = -1, newest_ = -1;
  int num_private_ = 0, num_pinned_ = 0, num_idle_ = 0;
};

}  // namespace bough
