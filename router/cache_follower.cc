#include "router/cache_follower.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace bough::router {
namespace {

// Repairs that did not help, or reports older than what is held, before all is asked for anew.
// Neither happens on a stream that keeps order.
constexpr int kPatience = 3;

std::bitset<kNumDigestBuckets> Named(const std::vector<uint8_t>& buckets) {
  std::bitset<kNumDigestBuckets> named;
  for (const uint8_t bucket : buckets) named.set(bucket);
  return named;
}

}  // namespace

// ---- questions ----

GroupCommand CacheFollower::Ask(Waiting what, GroupCommand command, absl::Time now) {
  waiting_ = what;
  asked_ = now;
  return command;
}

GroupCommand CacheFollower::AskSync(absl::Time now) {
  CacheSyncCommand sync{.number = ++last_number_};
  if (has_base_) sync.epoch = epoch_, sync.seq = seq_;
  return Ask(Waiting::kReply, sync, now);
}

GroupCommand CacheFollower::AskBuckets(absl::Time now) {
  BucketsCommand command{.epoch = epoch_, .buckets = {}};
  for (int b = 0; b < kNumDigestBuckets; ++b) {
    if (missing_[b]) command.buckets.push_back(static_cast<uint8_t>(b));
  }
  return Ask(Waiting::kBuckets, std::move(command), now);
}

CacheFollower::Command CacheFollower::StartOver(absl::Time now) {
  Forget();
  return AskSync(now);
}

void CacheFollower::Forget() {
  index_.Clear(group_);
  has_base_ = in_sync_ = false;
  repairs_ = stale_loads_ = 0;
  seq_ = 0;
  missing_.reset();
}

// ---- the stream ----

CacheFollower::Command CacheFollower::OnReady(uint64_t epoch, absl::Time now) {
  if (epoch != epoch_) Forget();
  epoch_ = epoch;
  group_seq_ = seq_;
  connected_ = true;
  in_sync_ = false;
  down_since_ = absl::InfiniteFuture();
  return AskSync(now);
}

void CacheFollower::OnDown(absl::Time now) {
  if (connected_) down_since_ = now;
  connected_ = in_sync_ = false;
  waiting_ = Waiting::kNothing;
}

CacheFollower::Command CacheFollower::On(const CacheSyncReply& reply, absl::Time now) {
  if (waiting_ != Waiting::kReply || reply.number != last_number_ || reply.epoch != epoch_) {
    return std::nullopt;  // the answer to an earlier question
  }
  waiting_ = Waiting::kNothing;
  if (!reply.resumed) {
    ++stats_.full_syncs;
    Forget();
    has_base_ = true;
    seq_ = reply.seq;
    missing_.set();
    waiting_ = Waiting::kBuckets;  // they come unasked
    asked_ = now;
    return std::nullopt;
  }
  if (!has_base_) return StartOver(now);  // resumed from what was forgotten meanwhile
  ++stats_.resumes;
  if (missing_.any()) return AskBuckets(now);
  in_sync_ = true;
  return std::nullopt;
}

CacheFollower::Command CacheFollower::OnGap(absl::Time now) {
  if (waiting_ == Waiting::kReply) return std::nullopt;
  ++stats_.gaps;
  return AskSync(now);
}

CacheFollower::Command CacheFollower::On(const CacheDelta& delta, absl::Time now) {
  if (!connected_ || delta.epoch != epoch_ || !has_base_) return std::nullopt;
  group_seq_ = std::max(group_seq_, delta.seq);
  if (delta.seq <= seq_) return std::nullopt;  // a repetition
  if (delta.seq != seq_ + 1) return OnGap(now);
  seq_ = delta.seq;
  if (delta.cleared) index_.Clear(group_);
  index_.Remove(group_, delta.removed);
  index_.Add(group_, delta.stored);
  return CheckDigest(delta.digest, now);
}

CacheFollower::Command CacheFollower::On(const GroupLoad& load, absl::Time now) {
  if (!connected_ || load.epoch != epoch_ || !has_base_) return std::nullopt;
  group_seq_ = std::max(group_seq_, load.cache_seq);
  if (load.cache_seq < seq_) return ++stale_loads_ < kPatience ? std::nullopt : StartOver(now);
  stale_loads_ = 0;
  return load.cache_seq > seq_ ? OnGap(now) : CheckDigest(load.cache_digest, now);
}

// ---- repair ----

// REQUIRES: `digest` is the group's after delta seq_.
CacheFollower::Command CacheFollower::CheckDigest(uint64_t digest, absl::Time now) {
  // An index that is full lacks blocks for good; its digests cannot agree.
  if (missing_.any() || !index_.complete(group_)) return std::nullopt;
  if (digest == index_.digest(group_)) {
    repairs_ = 0;
    return std::nullopt;
  }
  if (waiting_ != Waiting::kNothing) return std::nullopt;
  ++stats_.digest_mismatches;
  if (repairs_ == kPatience) {
    ++stats_.repairs_given_up;
    return StartOver(now);
  }
  return Ask(Waiting::kDigests, DigestsCommand{.epoch = epoch_}, now);
}

CacheFollower::Command CacheFollower::On(const BucketDigests& digests, absl::Time now) {
  if (waiting_ != Waiting::kDigests || digests.epoch != epoch_ || digests.seq < seq_) {
    return std::nullopt;
  }
  if (digests.seq > seq_) return OnGap(now);
  ++repairs_;
  for (int b = 0; b < kNumDigestBuckets; ++b) {
    missing_[b] = digests.digests[b] != index_.bucket_digest(group_, b);
  }
  waiting_ = Waiting::kNothing;
  if (missing_.none()) return std::nullopt;  // it was the digest that was wrong, not the index
  stats_.buckets_repaired += static_cast<int64_t>(missing_.count());
  return AskBuckets(now);
}

void CacheFollower::RemoveBuckets(const std::bitset<kNumDigestBuckets>& buckets) {
  std::vector<BlockHash> hashes;
  for (int b = 0; b < kNumDigestBuckets; ++b) {
    if (!buckets[b]) continue;
    index_.ForEachInBucket(group_, b, [&hashes](const BlockHash& h) { hashes.push_back(h); });
  }
  index_.Remove(group_, hashes);
}

CacheFollower::Command CacheFollower::On(const BucketContents& contents, absl::Time now) {
  if (!connected_ || contents.epoch != epoch_ || !has_base_) return std::nullopt;
  stats_.bucket_bytes += static_cast<int64_t>(16 * contents.hashes.size());
  if (contents.seq < seq_) return std::nullopt;
  if (contents.seq > seq_) return OnGap(now);
  const std::bitset<kNumDigestBuckets> named = Named(contents.buckets);
  // While the index fills, all that it holds of these buckets came by deltas and is right.
  if (in_sync_) RemoveBuckets(named);
  index_.Add(group_, contents.hashes);
  missing_ &= ~named;
  if (waiting_ != Waiting::kBuckets) return std::nullopt;
  asked_ = now;
  if (missing_.none()) {
    waiting_ = Waiting::kNothing;
    in_sync_ = true;
  }
  return std::nullopt;
}

CacheFollower::Command CacheFollower::Tick(absl::Time now) {
  if (!connected_) {
    if (has_base_ && now - down_since_ > kForgetAfter) Forget();
    return std::nullopt;
  }
  if (waiting_ == Waiting::kNothing || now - asked_ < kAnswerTimeout) return std::nullopt;
  ++stats_.timeouts;
  if (waiting_ == Waiting::kReply) return AskSync(now);
  if (waiting_ == Waiting::kBuckets) return AskBuckets(now);
  return Ask(Waiting::kDigests, DigestsCommand{.epoch = epoch_}, now);
}

}  // namespace bough::router
