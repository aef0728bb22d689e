#include "worker/cached_blocks.h"

#include <bit>
#include <cstring>

#include "common/check.h"

namespace bough {
namespace {

namespace link = ::bough::group::v1;

size_t HashBytes(const link::CacheDelta& delta) {
  return delta.stored().size() + delta.removed().size();
}

}  // namespace

void AppendHash(const BlockHash& hash, std::string* bytes) {
  static_assert(std::endian::native == std::endian::little);
  char raw[16];
  std::memcpy(raw, &hash.lo, 8);
  std::memcpy(raw + 8, &hash.hi, 8);
  bytes->append(raw, sizeof(raw));
}

std::optional<link::LinkResponse> CachedBlocks::Apply(const CacheEvents& events) {
  if (events.stored.empty() && events.removed.empty()) return std::nullopt;
  link::LinkResponse response;
  link::CacheDelta* delta = response.mutable_cache_delta();
  delta->set_cleared(!events.removed.empty() && events.removed.size() == num_blocks_);
  for (const BlockHash& hash : events.removed) {
    const int bucket = DigestBucket(hash);
    CHECK_EQ(buckets_[bucket].erase(hash), 1u) << "removed but not cached";
    digests_[bucket] -= DigestTerm(hash);
    digest_ -= DigestTerm(hash);
    if (!delta->cleared()) AppendHash(hash, delta->mutable_removed());
  }
  for (const BlockHash& hash : events.stored) {
    const int bucket = DigestBucket(hash);
    CHECK(buckets_[bucket].insert(hash).second) << "stored twice";
    digests_[bucket] += DigestTerm(hash);
    digest_ += DigestTerm(hash);
    AppendHash(hash, delta->mutable_stored());
  }
  num_blocks_ += events.stored.size() - events.removed.size();
  delta->set_epoch(epoch_);
  delta->set_seq(++seq_);
  delta->set_digest(digest_);

  ring_.push_back(response);
  ring_bytes_ += HashBytes(*delta);
  while (ring_bytes_ > limits_.ring_bytes) {
    ring_bytes_ -= HashBytes(ring_.front().cache_delta());
    ring_.pop_front();
  }
  return response;
}

bool CachedBlocks::CanResume(const link::CacheSync& sync) const {
  if (sync.epoch() != epoch_ || sync.seq() > seq_ || seq_ - sync.seq() > ring_.size()) return false;
  size_t bytes = 0;
  for (size_t i = ring_.size() - (seq_ - sync.seq()); i < ring_.size(); ++i) {
    bytes += HashBytes(ring_[i].cache_delta());
  }
  return bytes <= 16 * num_blocks_ + limits_.message_bytes;  // else all of it is less
}

std::vector<link::LinkResponse> CachedBlocks::OnSync(const link::CacheSync& sync,
                                                     CacheReader* reader) const {
  reader->follows = true;
  std::vector<link::LinkResponse> responses(1);
  link::CacheSyncReply* reply = responses[0].mutable_cache_sync_reply();
  reply->set_number(sync.number());
  reply->set_epoch(epoch_);
  reply->set_resumed(CanResume(sync));
  if (reply->resumed()) {
    reply->set_seq(sync.seq());
    responses.insert(responses.end(), ring_.end() - (seq_ - sync.seq()), ring_.end());
  } else {
    reply->set_seq(seq_);
    reader->pending.set();
  }
  return responses;
}

std::optional<link::LinkResponse> CachedBlocks::OnDigestsRequest(
    const link::DigestsRequest& request) const {
  if (request.epoch() != epoch_) return std::nullopt;
  link::LinkResponse response;
  link::BucketDigests* digests = response.mutable_bucket_digests();
  digests->set_epoch(epoch_);
  digests->set_seq(seq_);
  digests->mutable_digests()->Add(digests_.begin(), digests_.end());
  return response;
}

void CachedBlocks::OnBucketsRequest(const link::BucketsRequest& request,
                                    CacheReader* reader) const {
  if (request.epoch() != epoch_) return;
  for (const char bucket : request.buckets()) reader->pending.set(static_cast<uint8_t>(bucket));
}

link::LinkResponse CachedBlocks::NextBuckets(CacheReader* reader) const {
  CHECK(reader->pending.any());
  link::LinkResponse response;
  link::Buckets* contents = response.mutable_buckets();
  contents->set_epoch(epoch_);
  contents->set_seq(seq_);
  std::string* hashes = contents->mutable_hashes();
  for (int b = 0; b < kNumDigestBuckets; ++b) {
    if (!reader->pending[b]) continue;
    const size_t bytes = 16 * buckets_[b].size();
    if (!hashes->empty() && hashes->size() + bytes > limits_.message_bytes) break;
    for (const BlockHash& hash : buckets_[b]) AppendHash(hash, hashes);
    contents->mutable_buckets()->push_back(static_cast<char>(b));
    reader->pending.reset(b);
  }
  return response;
}

}  // namespace bough
