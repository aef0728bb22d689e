// One group's cached blocks as this router follows them: the router's half of the exchange in
// link.proto, on top of the prefix index.
//
//   down ── OnReady ──► asked ── reply: resumed ─────────────────────► following
//     ▲                   ▲     └ reply: not resumed ► filling ── all ──►  │  │
//     └── OnDown, any     │                            buckets received    │  │ digest differs
//                         └── gap in seq, or no answer ◄───────────────────┘  ▼
//                                                following ◄── contents ── repairing
//
// What is held is the group's set right after delta `seq` of `epoch`, but for `missing` buckets. It
// is kept while the stream is down, and a group that comes back in the same epoch sends only what
// happened meanwhile. The transport keeps order and loses nothing; this class does not rely on it:
// whatever is lost, repeated, late or wrong shows in seq or digest and is repaired.
#pragma once

#include <bitset>
#include <cstdint>
#include <optional>

#include "absl/time/time.h"
#include "router/group_messages.h"
#include "router/prefix_index.h"

namespace bough::router {

// Since the router started.
struct CacheStats {
  int64_t resumes = 0, full_syncs = 0;  // replies of either kind
  int64_t gaps = 0;                     // deltas missed
  int64_t digest_mismatches = 0;
  int64_t buckets_repaired = 0;
  int64_t repairs_given_up = 0;  // all was asked for instead
  int64_t timeouts = 0;          // questions asked again
  int64_t bucket_bytes = 0;      // of hashes received in bucket contents
};

// Not thread-safe. Each On... may return a command to be sent to the group.
class CacheFollower {
 public:
  using Command = std::optional<GroupCommand>;

  // `index` outlives this, which alone writes the group's part of it.
  CacheFollower(int group, PrefixIndex* index) : group_(group), index_(*index) {}

  // The group serves, on a new stream or after loading on the present one.
  Command OnReady(uint64_t epoch, absl::Time now);
  void OnDown(absl::Time now);

  Command On(const CacheSyncReply& reply, absl::Time now);
  Command On(const CacheDelta& delta, absl::Time now);
  Command On(const BucketDigests& digests, absl::Time now);
  Command On(const BucketContents& contents, absl::Time now);
  // The cache's part of a load report.
  Command On(const GroupLoad& load, absl::Time now);

  // Asks again what was not answered; forgets a group that stays away.
  Command Tick(absl::Time now);

  // The index holds what the group held a moment ago: a gap or a wrong bucket may be under repair.
  bool in_sync() const { return in_sync_; }
  uint64_t epoch() const { return epoch_; }
  uint64_t seq() const { return seq_; }
  // Deltas that the group's last word knew of and this router does not have.
  uint64_t lag() const { return group_seq_ > seq_ ? group_seq_ - seq_ : 0; }
  const CacheStats& stats() const { return stats_; }

  // An answer takes a round trip; bucket contents refresh it one by one.
  static constexpr absl::Duration kAnswerTimeout = absl::Milliseconds(250);
  // Longer than the group's ring of deltas lasts under load.
  static constexpr absl::Duration kForgetAfter = absl::Seconds(120);

 private:
  enum class Waiting : uint8_t { kNothing, kReply, kDigests, kBuckets };

  GroupCommand AskSync(absl::Time now);
  GroupCommand AskBuckets(absl::Time now);
  GroupCommand Ask(Waiting what, GroupCommand command, absl::Time now);
  Command StartOver(absl::Time now);
  Command OnGap(absl::Time now);
  Command CheckDigest(uint64_t digest, absl::Time now);
  void RemoveBuckets(const std::bitset<kNumDigestBuckets>& buckets);
  void Forget();

  const int group_;
  PrefixIndex& index_;

  bool connected_ = false;
  absl::Time down_since_ = absl::InfiniteFuture();
  // What is held. has_base_: anything at all.
  bool has_base_ = false;
  uint64_t epoch_ = 0, seq_ = 0;
  std::bitset<kNumDigestBuckets> missing_;
  bool in_sync_ = false;

  Waiting waiting_ = Waiting::kNothing;
  absl::Time asked_;
  uint64_t last_number_ = 0;  // of CacheSync
  uint64_t group_seq_ = 0;
  int repairs_ = 0;      // in a row after which the digest still differed
  int stale_loads_ = 0;  // in a row
  CacheStats stats_;
};

}  // namespace bough::router
