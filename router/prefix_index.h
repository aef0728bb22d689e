// Which group holds which KV block: hash -> 64-bit mask of groups. Fed by the groups' cache deltas,
// read by placement.
//
// Groups evict leaf first, so the blocks of a chain that a group holds are a prefix of the chain:
// Match looks at few of them (chain_search.h; it also says what the answer is where that is not so for
// a moment). An answer is a hint as of some time during the call; the group compares tokens.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "common/block_hash.h"
#include "router/block_table.h"
#include "router/chain_search.h"

namespace bough::router {

// The index's cap unless told otherwise: 1.2 GB when full.
inline constexpr size_t kDefaultMaxBlocks = 32 << 20;

// One thread writes; Match may run on any number of other threads meanwhile and never waits.
// Everything but Match is called from the writing thread.
class PrefixIndex {
 public:
  // `max_blocks`: distinct hashes held at most, a hard cap on memory (bytes() <= 40 * max_blocks).
  explicit PrefixIndex(size_t max_blocks = kDefaultMaxBlocks);

  // Room for this many distinct hashes at once, so that a snapshot does not grow the table step by
  // step. Never needed.
  void Reserve(size_t num_blocks);

  // REQUIRES: 0 <= group < kMaxGroups, everywhere. Adding a block twice, or removing one that is not
  // there, changes nothing. A new hash at the cap is refused: see complete().
  void Add(int group, std::span<const BlockHash> hashes);
  void Remove(int group, std::span<const BlockHash> hashes);
  // Forgets all of the group's blocks at once: what is left of them in the table is swept later, by
  // the writes that come and by Sweep.
  void Clear(int group);
  // A bounded slice of that work (some 10 us). True = more is left.
  bool Sweep();

  // Leading blocks of `chain` that each group holds.
  GroupDepths Match(std::span<const BlockHash> chain) const;

  int num_blocks(int group) const { return num_blocks_[group]; }
  // Sum of DigestTerm over the group's hashes, as CacheDelta.digest; and over those of them in one
  // DigestBucket.
  uint64_t digest(int group) const { return digest_[group]; }
  uint64_t bucket_digest(int group, int bucket) const {
    return bucket_digests_[group] == nullptr ? 0 : (*bucket_digests_[group])[bucket];
  }
  // The group's hashes in one DigestBucket, in no order. The index must not change meanwhile.
  void ForEachInBucket(int group, int bucket,
                       absl::FunctionRef<void(const BlockHash&)> visit) const;
  // False once one of the group's blocks was refused for lack of room, until Clear: its counts and
  // digests then lack refused blocks and cannot agree with the group's own.
  bool complete(int group) const { return complete_[group]; }

  // Distinct hashes over all groups; those of a cleared group count until swept.
  size_t size() const { return table_.size(); }
  size_t max_blocks() const { return table_.max_blocks(); }
  // Blocks refused since the start.
  int64_t num_refused() const { return num_refused_; }
  // Memory in use, all in.
  size_t bytes() const;

 private:
  // Positions are cleared by region: the unit of sweeping.
  static constexpr int kRegionBits = 14;
  static constexpr int kNumRegions = 1 << kRegionBits;
  static int RegionOf(uint64_t position) {
    return static_cast<int>(position >> (64 - kRegionBits));
  }
  using BucketDigests = std::array<uint64_t, kNumDigestBuckets>;

  uint64_t StaleGroups(uint64_t pending, uint32_t swept_at) const;
  bool IsStale(int group, int region) const;
  void SweepRegions(int first, int end);
  void Count(int group, const BlockHash& hash);
  void Discount(int group, const BlockHash& hash);
  void Refuse(int group);

  BlockTable table_;
  std::array<int, kMaxGroups> num_blocks_ = {};
  std::array<uint64_t, kMaxGroups> digest_ = {};
  std::array<std::unique_ptr<BucketDigests>, kMaxGroups>
      bucket_digests_;  // nullptr = never added to
  std::array<bool, kMaxGroups> complete_;
  int64_t num_refused_ = 0;

  // A group's bits are stale in the regions that were last swept before it was cleared. Clears are
  // numbered from 1.
  std::atomic<uint64_t> pending_ = 0;  // groups that may have stale bits
  std::array<std::atomic<uint32_t>, kMaxGroups> cleared_at_ = {};
  std::unique_ptr<std::atomic<uint32_t>[]> swept_at_;  // by region
  uint32_t num_clears_ = 0;
  int next_region_ = 0, regions_left_ = 0;  // of the sweep in progress
};

// The blocks of requests in flight, counted per group: what a group is about to hold before its
// delta says so (two requests of one prefix that arrive together go together), and what it is
// reading now. Not thread-safe.
class ActivePrefixes {
 public:
  void Add(int group, std::span<const BlockHash> chain);
  // REQUIRES: an Add of the same chain to the same group.
  void Remove(int group, std::span<const BlockHash> chain);

  GroupDepths Match(std::span<const BlockHash> chain) const;
  bool empty() const { return uses_.empty(); }

 private:
  struct Uses {
    uint64_t mask = 0;
    absl::flat_hash_map<int, int> count;  // group -> requests
  };
  absl::flat_hash_map<BlockHash, Uses> uses_;
};

}  // namespace bough::router
