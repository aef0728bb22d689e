// Groups and routers in simulated time, over channels that lose, repeat, delay, reorder and damage
// messages, break and come back, while groups store, evict and restart. The worker's half is
// CachedBlocks behind a made-up block manager, the router's half is GroupTable, the words between
// them are link.proto's. gRPC breaks and does no more: a quarter of the histories has only that, and
// then nothing may ever need repair.
//
// Always:          an index in sync is exactly what the group held at the seq that the index is at;
//                  one that is not in sync answers nothing.
// After a second
// of quiet:        every index is what its group holds.
//
// 10^4 histories a run. More: --gtest_shuffle --gtest_random_seed=1 --gtest_repeat=10. A failure
// names its seed; World(seed).Run() is that history again.

#include <algorithm>
#include <bit>
#include <memory>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "router/group_table.h"
#include "router/link_translation.h"
#include "worker/cached_blocks.h"
#include "worker/load_pacer.h"

namespace bough::router {
namespace {

namespace pb = ::bough::group::v1;
using Random = std::minstd_rand;

constexpr int kNumBlocks = 48;  // that may ever exist; a set of them is a mask
constexpr absl::Duration kStep = absl::Milliseconds(1);
constexpr absl::Duration kQuiet = absl::Seconds(1);

bool Chance(Random* random, double p) {
  return std::uniform_real_distribution<double>(0, 1)(*random) < p;
}
int Below(Random* random, int n) { return std::uniform_int_distribution<int>(0, n - 1)(*random); }

// What may go wrong in one history; probabilities per message or per step.
struct Faults {
  double loss = 0, repetition = 0, damage = 0;
  int max_delay_ms = 20;
  bool keeps_order = true;
  double disconnect = 0, restart = 0;
  bool outlive_streams = false;  // messages of a stream that broke arrive in the next

  static Faults Draw(Random* random) {
    Faults f;
    f.max_delay_ms = 1 + Below(random, 30);
    if (Chance(random, 0.5)) f.disconnect = 0.01;
    if (Chance(random, 0.4)) f.restart = 0.005;
    if (Chance(random, 0.25)) return f;  // what gRPC gives
    f.keeps_order = Chance(random, 0.5);
    if (Chance(random, 0.5)) f.loss = 0.1;
    if (Chance(random, 0.5)) f.repetition = 0.1;
    if (Chance(random, 0.3)) f.damage = 0.03;
    f.outlive_streams = Chance(random, 0.3);
    return f;
  }
};

// The blocks that can exist: a forest. A hash that was evicted may come back.
struct Universe {
  explicit Universe(Random* random) {
    std::mt19937_64 bits((*random)());
    for (int i = 0; i < kNumBlocks; ++i) {
      hash[i] = {bits(), bits()};
      parent[i] = i == 0 || Chance(random, 0.1) ? -1 : Below(random, i);
    }
  }
  BlockHash hash[kNumBlocks];
  int parent[kNumBlocks];
};

bool Has(uint64_t mask, int block) { return mask >> block & 1; }

// ---- the group ----

// One epoch of a group: what it holds, and what it held after each delta.
class Group {
 public:
  Group(const Universe& universe, uint64_t epoch)
      : epoch(epoch),
        cache(epoch, {.ring_bytes = 16 * 40, .message_bytes = 16 * 6}),
        universe_(universe) {}

  // Stores some blocks whose parents are held, evicts some leaves; now and then everything.
  std::optional<pb::LinkResponse> Act(Random* random) {
    const uint64_t before = held;
    if (Chance(random, 0.02)) held = 0;
    for (int i = Below(random, 6); i > 0; --i) {
      const int b = Below(random, kNumBlocks);
      const int parent = universe_.parent[b];
      if (!Has(held, b)) {
        if (parent < 0 || Has(held, parent)) held |= uint64_t{1} << b;
      } else if (IsLeaf(b)) {
        held &= ~(uint64_t{1} << b);
      }
    }
    CacheEvents events;
    for (int b = 0; b < kNumBlocks; ++b) {
      if (Has(held & ~before, b)) events.stored.push_back(universe_.hash[b]);
      if (Has(before & ~held, b)) events.removed.push_back(universe_.hash[b]);
    }
    if (before != held) held_after.push_back(held);
    changed = changed || before != held;
    return cache.Apply(events);
  }

  pb::LinkResponse Load() const {
    pb::LinkResponse response;
    response.mutable_load()->set_epoch(epoch);
    response.mutable_load()->set_cache_seq(cache.seq());
    response.mutable_load()->set_cache_digest(cache.digest());
    return response;
  }

  const uint64_t epoch;
  CachedBlocks cache;
  uint64_t held = 0;
  std::vector<uint64_t> held_after = {0};  // by seq
  LoadPacer pacer;
  bool changed = true;

 private:
  bool IsLeaf(int block) const {
    for (int b = 0; b < kNumBlocks; ++b) {
      if (Has(held, b) && universe_.parent[b] == block) return false;
    }
    return true;
  }
  const Universe& universe_;
};

// ---- the channel ----

template <typename Message>
class Channel {
 public:
  void Send(Message message, absl::Time now, const Faults& faults, Random* random) {
    if (Chance(random, faults.loss)) return;
    const int copies = Chance(random, faults.repetition) ? 2 : 1;
    for (int i = 0; i < copies; ++i) {
      absl::Time at = now + kStep * (1 + Below(random, faults.max_delay_ms));
      if (faults.keeps_order) last_ = at = std::max(at, last_);
      in_flight_.push_back({at, message});
    }
  }
  std::vector<Message> Take(absl::Time now) {
    std::vector<Message> arrived;
    std::stable_sort(in_flight_.begin(), in_flight_.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    auto it = in_flight_.begin();
    for (; it != in_flight_.end() && it->first <= now; ++it) arrived.push_back(it->second);
    in_flight_.erase(in_flight_.begin(), it);
    return arrived;
  }
  void Clear() { in_flight_.clear(); }
  void Delay(absl::Duration by) {
    for (auto& [at, message] : in_flight_) at += by;
  }

 private:
  std::vector<std::pair<absl::Time, Message>> in_flight_;
  absl::Time last_ = absl::InfinitePast();
};

// Wrong content in a message that is otherwise in its place.
void Damage(pb::LinkResponse* response, Random* random) {
  const auto cut = [](std::string* hashes) {
    if (!hashes->empty()) hashes->resize(hashes->size() - 16);
  };
  if (response->has_buckets()) return cut(response->mutable_buckets()->mutable_hashes());
  if (!response->has_cache_delta()) return;
  pb::CacheDelta* delta = response->mutable_cache_delta();
  switch (Below(random, 4)) {
    case 0:
      return cut(delta->mutable_stored());
    case 1:
      return cut(delta->mutable_removed());
    case 2:
      AppendHash({(*random)(), (*random)()}, delta->mutable_stored());
      return;
    default:
      delta->set_digest(delta->digest() + 1);
  }
}

// ---- the world ----

struct Link {
  bool up = false;
  absl::Time up_again;
  CacheReader reader;
  Channel<pb::LinkResponse> to_router;
  Channel<pb::LinkRequest> to_group;
};

class World {
 public:
  explicit World(uint64_t seed)
      : random_(static_cast<uint32_t>(seed * 2654435761u + 1)),
        universe_(&random_),
        faults_(Faults::Draw(&random_)) {
    const int num_groups = 1 + Below(&random_, 2), num_routers = 1 + Below(&random_, 2);
    std::vector<GroupAddress> addresses(num_groups);
    for (int g = 0; g < num_groups; ++g) groups_.push_back(NewGroup());
    for (int r = 0; r < num_routers; ++r)
      routers_.push_back(std::make_unique<GroupTable>(addresses));
    links_.resize(num_routers, std::vector<Link>(num_groups));
    for (auto& row : links_) {
      for (Link& link : row) link.up_again = now_ + kStep * Below(&random_, 20);
    }
  }

  void Run() {
    const absl::Time chaos_ends = now_ + kStep * (20 + Below(&random_, 150));
    while (now_ < chaos_ends && !::testing::Test::HasFailure()) Step(/*quiet=*/false);
    const bool only_damaged =
        faults_.loss + faults_.repetition == 0 && faults_.keeps_order && !faults_.outlive_streams;
    const bool was_orderly = only_damaged && faults_.damage == 0;
    faults_ = {.max_delay_ms = faults_.max_delay_ms, .keeps_order = faults_.keeps_order};
    const int64_t given_up = NumGivenUp();
    const absl::Time end = now_ + kQuiet;
    while (now_ < end && !::testing::Test::HasFailure()) Step(/*quiet=*/true);
    CheckConverged(was_orderly);
    // Repairs of buckets are enough.
    if (only_damaged) {
      EXPECT_EQ(NumGivenUp(), given_up);
    }
  }

 private:
  std::unique_ptr<Group> NewGroup() { return std::make_unique<Group>(universe_, ++last_epoch_); }

  void Step(bool quiet) {
    now_ += kStep;
    for (int g = 0; g < static_cast<int>(groups_.size()); ++g) {
      if (!quiet && Chance(&random_, faults_.restart)) Restart(g);
      if (!quiet && Chance(&random_, 0.3)) {
        if (auto delta = groups_[g]->Act(&random_)) ToFollowers(g, *delta);
      }
      if (groups_[g]->pacer.Due(/*busy=*/false, groups_[g]->changed) <= now_) {
        groups_[g]->pacer.Sent(now_);
        groups_[g]->changed = false;
        for (auto& row : links_) {
          if (row[g].up) ToRouter(&row[g], groups_[g]->Load());
        }
      }
    }
    for (int r = 0; r < static_cast<int>(routers_.size()); ++r) {
      for (int g = 0; g < static_cast<int>(groups_.size()); ++g) Exchange(r, g, quiet);
      if (++num_steps_ % 5 == 0) routers_[r]->Tick(now_);
      SendCommands(r);
      if (Chance(&random_, quiet ? 0.02 : 0.3)) CheckAnswers(r);
    }
  }

  void ToRouter(Link* link, const pb::LinkResponse& response) {
    link->to_router.Send(response, now_, faults_, &random_);
  }
  void ToFollowers(int g, const pb::LinkResponse& delta) {
    for (auto& row : links_) {
      if (row[g].up && row[g].reader.follows) ToRouter(&row[g], delta);
    }
  }
  void SendCommands(int r) {
    for (const auto& [g, command] : routers_[r]->TakeCommands()) {
      if (links_[r][g].up) links_[r][g].to_group.Send(ToProto(command), now_, faults_, &random_);
    }
  }

  void Restart(int g) {
    groups_[g] = NewGroup();
    for (int r = 0; r < static_cast<int>(routers_.size()); ++r) Disconnect(r, g);
  }
  void Disconnect(int r, int g) {
    Link& link = links_[r][g];
    if (link.up) routers_[r]->OnDown(g, "cut", now_);
    link.up = false;
    link.up_again = now_ + kStep * (1 + Below(&random_, 40));
    link.reader = {};
    if (faults_.outlive_streams) {
      link.to_router.Delay(kStep * Below(&random_, 100));
      link.to_group.Delay(kStep * Below(&random_, 100));
      return;
    }
    link.to_router.Clear();
    link.to_group.Clear();
  }
  // The Hello comes first and always: without it there is no stream.
  void Connect(int r, int g) {
    links_[r][g].up = true;
    GroupHello hello;
    hello.epoch = groups_[g]->epoch;
    hello.ready = true;
    hello.block_size = kBlockSize;
    routers_[r]->OnHello(g, hello, now_);
  }

  void Exchange(int r, int g, bool quiet) {
    Link& link = links_[r][g];
    if (!link.up) {
      if (link.up_again > now_) return;
      Connect(r, g);
    } else if (!quiet && Chance(&random_, faults_.disconnect)) {
      return Disconnect(r, g);
    }
    for (const pb::LinkRequest& request : link.to_group.Take(now_)) OnRequest(&link, g, request);
    if (link.reader.pending.any()) ToRouter(&link, groups_[g]->cache.NextBuckets(&link.reader));
    for (pb::LinkResponse& response : link.to_router.Take(now_)) {
      if (Chance(&random_, faults_.damage)) {
        Damage(&response, &random_);
        damaged_ = true;
      }
      Deliver(r, g, response);
    }
  }

  // As GroupServer does.
  void OnRequest(Link* link, int g, const pb::LinkRequest& request) {
    CachedBlocks& cache = groups_[g]->cache;
    if (request.has_cache_sync()) {
      for (const auto& response : cache.OnSync(request.cache_sync(), &link->reader)) {
        ToRouter(link, response);
      }
    } else if (request.has_digests()) {
      if (auto response = cache.OnDigestsRequest(request.digests())) ToRouter(link, *response);
    } else if (request.has_buckets()) {
      cache.OnBucketsRequest(request.buckets(), &link->reader);
    }
  }

  // As Dispatcher does.
  void Deliver(int r, int g, const pb::LinkResponse& response) {
    absl::StatusOr<GroupEvent> event = FromProto(response);
    ASSERT_TRUE(event.ok()) << event.status();
    GroupTable& table = *routers_[r];
    std::visit(
        [&](const auto& e) {
          using Event = std::decay_t<decltype(e)>;
          if constexpr (std::is_same_v<Event, GroupLoad>) {
            table.OnLoad(g, e, now_);
          } else if constexpr (std::is_same_v<Event, CacheSyncReply> ||
                               std::is_same_v<Event, CacheDelta> ||
                               std::is_same_v<Event, BucketDigests> ||
                               std::is_same_v<Event, BucketContents>) {
            table.OnCache(g, e, now_);
          }
        },
        *event);
  }

  uint64_t IndexOf(int r, int g) const {
    uint64_t mask = 0;
    for (int b = 0; b < kNumBlocks; ++b) {
      const auto depths = routers_[r]->index().Match({&universe_.hash[b], 1});
      mask |= static_cast<uint64_t>(depths[g]) << b;
    }
    return mask;
  }

  void CheckAnswers(int r) {
    for (int g = 0; g < static_cast<int>(groups_.size()); ++g) {
      const CacheFollower& cache = routers_[r]->cache(g);
      if (!cache.in_sync()) {
        const BlockHash* any = &universe_.hash[Below(&random_, kNumBlocks)];
        EXPECT_EQ(routers_[r]->Views({any, 1}, 0)[g].matched_blocks, 0);
        continue;
      }
      // A stream breaks before its group is replaced.
      ASSERT_EQ(cache.epoch(), groups_[g]->epoch);
      ASSERT_LE(cache.seq(), groups_[g]->cache.seq());
      if (damaged_) continue;
      EXPECT_EQ(IndexOf(r, g), groups_[g]->held_after[cache.seq()]);
    }
  }

  int64_t NumGivenUp() const {
    int64_t sum = 0;
    for (const auto& router : routers_) {
      for (int g = 0; g < router->size(); ++g) sum += router->cache(g).stats().repairs_given_up;
    }
    return sum;
  }

  void CheckConverged(bool orderly) {
    for (int r = 0; r < static_cast<int>(routers_.size()); ++r) {
      for (int g = 0; g < static_cast<int>(groups_.size()); ++g) {
        const Group& group = *groups_[g];
        const CacheFollower& cache = routers_[r]->cache(g);
        EXPECT_TRUE(cache.in_sync());
        EXPECT_EQ(cache.epoch(), group.epoch);
        EXPECT_EQ(cache.seq(), group.cache.seq());
        EXPECT_EQ(IndexOf(r, g), group.held);
        EXPECT_EQ(routers_[r]->index().num_blocks(g), std::popcount(group.held));
        EXPECT_EQ(routers_[r]->index().digest(g), group.cache.digest());
        if (!orderly) continue;  // else there was nothing to repair
        EXPECT_EQ(cache.stats().gaps, 0);
        EXPECT_EQ(cache.stats().digest_mismatches, 0);
        EXPECT_EQ(cache.stats().timeouts, 0);
      }
    }
  }

  Random random_;
  const Universe universe_;
  Faults faults_;
  absl::Time now_ = absl::UnixEpoch();
  uint64_t last_epoch_ = 0;
  int num_steps_ = 0;
  bool damaged_ = false;
  std::vector<std::unique_ptr<Group>> groups_;
  std::vector<std::unique_ptr<GroupTable>> routers_;
  std::vector<std::vector<Link>> links_;  // [router][group]
};

TEST(SyncSimulation, EveryHistoryEndsInTheTruthAndNeverLeavesIt) {
  constexpr uint64_t kHistories = 10'000;
  const uint64_t first = kHistories * ::testing::UnitTest::GetInstance()->random_seed();
  for (uint64_t seed = first; seed < first + kHistories; ++seed) {
    World(seed).Run();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

}  // namespace
}  // namespace bough::router
