#include "worker/cached_blocks.h"

#include <bit>
#include <cstring>

#include "common/check.h"

namespace bough {

void AppendHash(const BlockHash& hash, std::string* bytes) {
  static_assert(std::endian::native == std::endian::little);
  char raw[16];
  std::memcpy(raw, &hash.lo, 8);
  std::memcpy(raw + 8, &hash.hi, 8);
  bytes->append(raw, sizeof(raw));
}

std::optional<group::v1::LinkResponse> CachedBlocks::Apply(const CacheEvents& events) {
  if (events.stored.empty() && events.removed.empty()) return std::nullopt;
  group::v1::LinkResponse response;
  group::v1::CacheDelta* delta = response.mutable_cache_delta();
  for (const BlockHash& hash : events.removed) {
    CHECK_EQ(hashes_.erase(hash), 1u) << "removed but not cached";
    AppendHash(hash, delta->mutable_removed());
    digest_ -= DigestTerm(hash);
  }
  for (const BlockHash& hash : events.stored) {
    CHECK(hashes_.insert(hash).second) << "stored twice";
    AppendHash(hash, delta->mutable_stored());
    digest_ += DigestTerm(hash);
  }
  delta->set_epoch(epoch_);
  delta->set_seq(++seq_);
  delta->set_digest(digest_);
  return response;
}

std::vector<group::v1::LinkResponse> CachedBlocks::Snapshot() const {
  std::vector<group::v1::LinkResponse> chunks;
  const auto add_chunk = [&] {
    group::v1::Snapshot* chunk = chunks.emplace_back().mutable_snapshot();
    chunk->set_epoch(epoch_);
    chunk->set_seq(seq_);
    return chunk->mutable_hashes();
  };
  std::string* bytes = add_chunk();
  for (const BlockHash& hash : hashes_) {
    if (bytes->size() == 16 * kSnapshotHashes) bytes = add_chunk();
    AppendHash(hash, bytes);
  }
  chunks.back().mutable_snapshot()->set_last(true);
  return chunks;
}

}  // namespace bough
