// The prefix cache's hashes as routers follow them: a mirror of the engine's, and the answers to a
// router that comes, comes back, missed a delta or holds something else (link.proto has the
// exchange).
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "bough/group/v1/link.pb.h"
#include "common/block_hash.h"
#include "worker/engine.h"

namespace bough {

// What one router is to be sent besides answers.
struct CacheReader {
  bool follows = false;  // every delta
  std::bitset<kNumDigestBuckets>
      pending;  // the contents of these buckets, as fast as it reads them
};

struct CacheFeedLimits {
  // Of the hashes in deltas kept for routers that come back: a minute of 17,000 blocks stored or
  // removed per second, ten times what a group prefills.
  size_t ring_bytes = 16 << 20;
  // Of the hashes in one message of bucket contents, but for a single larger bucket. A router applies
  // a message under its lock: 4096 hashes take it well under a millisecond.
  size_t message_bytes = 64 << 10;
};

// Not thread-safe; its owner locks. Whatever is returned must reach the router before the next
// delta does.
class CachedBlocks {
 public:
  explicit CachedBlocks(uint64_t epoch, const CacheFeedLimits& limits = {})
      : epoch_(epoch), limits_(limits) {}

  // The next delta; nullopt when nothing changed. REQUIRES: no hash is in both lists, stored ones
  // are new and removed ones cached.
  std::optional<group::v1::LinkResponse> Apply(const CacheEvents& events);

  // The reply, and the deltas that the router lacks if it can go on from what it holds; else all
  // buckets are pending from now on.
  std::vector<group::v1::LinkResponse> OnSync(const group::v1::CacheSync& sync,
                                              CacheReader* reader) const;
  // nullopt: asked of another epoch.
  std::optional<group::v1::LinkResponse> OnDigestsRequest(
      const group::v1::DigestsRequest& request) const;
  void OnBucketsRequest(const group::v1::BucketsRequest& request, CacheReader* reader) const;

  // Takes pending buckets, at least one, as many as one message may hold. REQUIRES: some are
  // pending.
  group::v1::LinkResponse NextBuckets(CacheReader* reader) const;

  uint64_t seq() const { return seq_; }
  uint64_t digest() const { return digest_; }

 private:
  bool CanResume(const group::v1::CacheSync& sync) const;

  const uint64_t epoch_;
  const CacheFeedLimits limits_;
  uint64_t seq_ = 0;
  uint64_t digest_ = 0;
  size_t num_blocks_ = 0;
  std::array<absl::flat_hash_set<BlockHash>, kNumDigestBuckets> buckets_;
  std::array<uint64_t, kNumDigestBuckets> digests_ = {};

  std::deque<group::v1::LinkResponse> ring_;  // the last deltas, up to seq_
  size_t ring_bytes_ = 0;                     // of their hashes
};

// 16 bytes, lo then hi, little endian.
void AppendHash(const BlockHash& hash, std::string* bytes);

}  // namespace bough
