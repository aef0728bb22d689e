// Which KV block belongs to whom. Blocks of kBlockSize tokens are counted by reference; a full
// block may enter the prefix cache, where it outlives its last reference until its room is needed.
//
//   free     no reference, not in the cache
//   used     referenced; in the cache or not
//   cached   in the cache and not referenced; in LRU order, the oldest is evicted first
//   free + used + cached == total
//
// Leaf first: a cached block's parent is cached as well, and is used or younger. So the oldest
// cached block never has a cached child, and every chain in the cache can be reached from its root.
// It holds because whoever references a block references its parent, and because Release goes from
// the tail to the head.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/block_hash.h"

namespace bough {

inline constexpr int32_t kNoBlock = -1;

// What the prefix cache gained and lost since the last report, net: no hash is in both lists or
// twice in one. Each in the order in which it happened.
struct CacheEvents {
  std::vector<BlockHash> stored, removed;
};

// Called only from the engine thread.
class BlockManager {
 public:
  explicit BlockManager(int num_blocks);

  // A block with one reference, taken from the free ones, else by evicting. nullopt: all are used.
  std::optional<int32_t> Allocate();
  // One reference more. REQUIRES: the block is used or cached.
  void Ref(int32_t block);
  // One reference less for each block of a table, tail first.
  void Release(std::span<const int32_t> table);

  // The cached or used block that holds exactly `tokens` after `parent` (kNoBlock at the root).
  // Equal hashes with other tokens or another parent are a miss. Takes no reference.
  std::optional<int32_t> Find(const BlockHash& hash, int32_t parent,
                              std::span<const int32_t> tokens) const;

  // Enters a full block. Returns the block that its owner holds from now on: itself, or, when an
  // equal one was there first, that one (the reference moves over). nullopt: another content has
  // this hash; the block stays private, and so must all that follow it. REQUIRES: block is used and
  // not in the cache; parent is kNoBlock or in the cache.
  std::optional<int32_t> Cache(int32_t block, const BlockHash& hash, int32_t parent,
                               std::span<const int32_t> tokens);

  CacheEvents TakeEvents();

  int ref_count(int32_t block) const { return blocks_[block].ref; }
  int num_total() const { return num_blocks_; }
  int num_free() const { return static_cast<int>(free_.size()); }
  int num_cached() const { return num_cached_; }
  int num_used() const { return num_blocks_ - num_free() - num_cached_; }
  int num_available() const { return num_free() + num_cached_; }  // what Allocate can give

  // CHECKs the above. `expected_refs` [num_total]: references as their owners count them.
  void CheckIntegrity(std::span<const int> expected_refs) const;

 private:
  struct Block {
    int ref = 0;
    bool in_cache = false;
    int32_t parent = kNoBlock;
    int32_t older = kNoBlock,
            younger = kNoBlock;  // LRU neighbours; a ring through blocks_[num_blocks_]
    BlockHash hash;
  };
  bool Holds(int32_t block, int32_t parent, std::span<const int32_t> tokens) const;
  void LinkYoungest(int32_t block);
  void Unlink(int32_t block);

  const int num_blocks_;
  int num_cached_ = 0;
  std::vector<Block> blocks_;    // [num_blocks + 1]; the last is the ring's anchor
  std::vector<int32_t> tokens_;  // [num_blocks, kBlockSize] of blocks in the cache
  std::vector<int32_t> free_;    // a stack
  absl::flat_hash_map<BlockHash, int32_t> index_;
  std::vector<std::pair<BlockHash, int>> log_;  // +1 stored, -1 removed
};

}  // namespace bough
