// Which group holds which KV block: hash -> 64-bit mask of groups. Fed by the groups' cache deltas,
// read by placement.
//
// Groups evict leaf first, so the blocks of a chain that a group holds are a prefix of the chain:
// Match stops at a group's first missing block.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/block_hash.h"

namespace bough::router {

inline constexpr int kMaxGroups = 64;

// Not thread-safe.
class PrefixIndex {
 public:
  // REQUIRES: 0 <= group < kMaxGroups. Adding a block twice, or removing one that is not there,
  // changes nothing.
  void Add(int group, std::span<const BlockHash> hashes);
  void Remove(int group, std::span<const BlockHash> hashes);
  void Clear(int group);

  // Leading blocks of `chain` that each group holds.
  std::array<int, kMaxGroups> Match(std::span<const BlockHash> chain) const;

  int num_blocks(int group) const { return num_blocks_[group]; }
  // Distinct hashes over all groups.
  size_t size() const { return masks_.size(); }
  // Sum of DigestTerm over the group's hashes, as CacheDelta.digest.
  uint64_t digest(int group) const { return digest_[group]; }

 private:
  absl::flat_hash_map<BlockHash, uint64_t> masks_;
  std::array<int, kMaxGroups> num_blocks_ = {};
  std::array<uint64_t, kMaxGroups> digest_ = {};
};

// The blocks of requests in flight, counted per group: what a group is about to hold before its
// delta says so (two requests of one prefix that arrive together go together), and what it is
// reading now. Not thread-safe.
class ActivePrefixes {
 public:
  void Add(int group, std::span<const BlockHash> chain);
  // REQUIRES: an Add of the same chain to the same group.
  void Remove(int group, std::span<const BlockHash> chain);

  std::array<int, kMaxGroups> Match(std::span<const BlockHash> chain) const;
  bool empty() const { return uses_.empty(); }

 private:
  struct Uses {
    uint64_t mask = 0;
    absl::flat_hash_map<int, int> count;  // group -> requests
  };
  absl::flat_hash_map<BlockHash, Uses> uses_;
};

}  // namespace bough::router
