// The prefix cache's hashes as routers see them: a mirror of the engine's, so that a router which
// joins later starts from a snapshot that the next delta continues.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "bough/group/v1/link.pb.h"
#include "common/block_hash.h"
#include "worker/engine.h"

namespace bough {

// Not thread-safe; its owner locks.
class CachedBlocks {
 public:
  explicit CachedBlocks(uint64_t epoch) : epoch_(epoch) {}

  // The next delta; nullopt when nothing changed. REQUIRES: no hash is in both lists, stored ones
  // are new and removed ones cached.
  std::optional<group::v1::LinkResponse> Apply(const CacheEvents& events);

  // All hashes as of the last delta's seq, in chunks of at most kSnapshotHashes; one empty chunk
  // when there are none.
  std::vector<group::v1::LinkResponse> Snapshot() const;

  static constexpr int kSnapshotHashes = 64 * 1024;  // 1 MiB a chunk

 private:
  const uint64_t epoch_;
  uint64_t seq_ = 0;
  uint64_t digest_ = 0;
  absl::flat_hash_set<BlockHash> hashes_;
};

// 16 bytes, lo then hi, little endian.
void AppendHash(const BlockHash& hash, std::string* bytes);

}  // namespace bough
