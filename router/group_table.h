// Every group as the router sees it: state, load, cached blocks, what is in flight there.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "router/cache_follower.h"
#include "router/coefficients.h"
#include "router/config.h"
#include "router/group_messages.h"
#include "router/policy.h"
#include "router/prefix_index.h"

namespace bough::router {

// A ready group that says nothing for this long is down: it promises a Load every 100 ms.
inline constexpr absl::Duration kSilenceLimit = absl::Seconds(1);
// While it reads weights (or has not said Hello) a group may be quiet for longer.
inline constexpr absl::Duration kLoadingSilenceLimit = absl::Seconds(30);

struct GroupState {
  enum class Phase { kConnecting, kLoading, kReady };

  GroupAddress address;
  Phase phase = Phase::kConnecting;
  bool drained_here = false;  // by AdminService.Drain
  std::string last_error;     // of the link; empty when healthy
  GroupHello hello;           // of the current connection; epoch 0 before one came
  GroupLoad load;
  std::map<int, RankProgress> progress;  // by rank
  absl::Time last_heard = absl::InfinitePast();
  absl::Time last_load = absl::InfinitePast();

  BusyShare busy_share;  // from the loads it reported
  // Predicted prefill seconds of the submits on this stream that `load` does not count yet, oldest
  // first.
  std::deque<double> unreported;
  double unreported_seconds = 0;  // their sum
  int requests_here = 0;          // this router's, in flight
  // Since the router connected.
  int64_t prompt_tokens = 0, cached_prompt_tokens = 0, generated_tokens = 0;

  // In flight there, as the group said last or as this router knows.
  int num_requests() const { return std::max(load.running + load.waiting, requests_here); }
  bool draining() const { return drained_here || load.draining; }
  bool accepting() const { return phase == Phase::kReady && !draining(); }
};

// What the router foresaw of a request when it sent it to a group.
struct Forecast {
  double wait_seconds = 0, prefill_seconds = 0;
  int cached_tokens = 0;
};

// What became of the forecasts: acknowledged; or not in time, or refused, so that the blocks no
// longer counted as the group's.
struct ForecastStats {
  int64_t confirmed = 0, expired = 0, refused = 0;
  // Of those confirmed.
  int64_t foreseen_cached_tokens = 0, found_cached_tokens = 0;
};

// Not thread-safe. Groups are named by their index.
class GroupTable {
 public:
  explicit GroupTable(const std::vector<GroupAddress>& addresses);

  // False when the group may not serve here (another model, block size); last_error says why.
  bool OnHello(int group, GroupHello hello, absl::Time now);
  void OnProgress(int group, RankProgress progress, absl::Time now);
  void OnLoad(int group, const GroupLoad& load, absl::Time now);
  // CacheSyncReply, CacheDelta, BucketDigests, BucketContents.
  template <typename CacheEvent>
  void OnCache(int group, const CacheEvent& event, absl::Time now) {
    groups_[group].last_heard = now;
    Send(group, caches_[group].On(event, now));
  }
  void OnHeard(int group, absl::Time now) { groups_[group].last_heard = now; }
  // Forgets everything of the connection but the cached blocks: the group may come back.
  void OnDown(int group, const std::string& why, absl::Time now);
  // What was not answered or confirmed in time.
  void Tick(absl::Time now);
  // What is to be sent to groups, in order.
  std::vector<std::pair<int, GroupCommand>> TakeCommands() { return std::exchange(commands_, {}); }

  bool IsSilent(int group, absl::Time now) const;

  // A request's prompt goes to a group. Its blocks count there at once, as if they were cached:
  // until Retire, or until the group could have admitted it twice over and did not (Tick).
  // REQUIRES: handle is not in flight; `chain` stays until Retire.
  void Dispatch(uint64_t handle, int group, std::span<const BlockHash> chain,
                const Forecast& forecast, absl::Time now);
  // The group admitted it, and found this many tokens cached.
  void Confirm(uint64_t handle, int cached_tokens);
  // It is over there, or was never taken.
  void Retire(uint64_t handle, bool refused = false);

  // One per group. Bits of `excluded` do not accept.
  std::vector<GroupView> Views(std::span<const BlockHash> chain, uint64_t excluded) const;

  int size() const { return static_cast<int>(groups_.size()); }
  int num_ready() const;  // phase kReady
  int num_accepting() const;
  bool any_loading() const;
  // Index by name; -1 = no such group.
  int Find(const std::string& name) const;
  GroupState& operator[](int group) { return groups_[group]; }
  const GroupState& operator[](int group) const { return groups_[group]; }
  const PrefixIndex& index() const { return index_; }
  const CacheFollower& cache(int group) const { return caches_[group]; }
  const ForecastStats& forecasts() const { return forecasts_; }
  // What is served: the last Hello that was accepted; epoch 0 before the first.
  const GroupHello& model() const { return model_; }

 private:
  struct InFlight {
    int group;
    std::span<const BlockHash> chain;
    int foreseen_cached_tokens;
    absl::Time expires;
    bool counts = true;  // in active_
    bool confirmed = false;
  };

  void Send(int group, CacheFollower::Command command);

  std::vector<GroupState> groups_;
  PrefixIndex index_;
  std::vector<CacheFollower> caches_;
  ActivePrefixes active_;
  absl::flat_hash_map<uint64_t, InFlight> in_flight_;      // by handle
  std::set<std::pair<absl::Time, uint64_t>> unconfirmed_;  // by expiry
  ForecastStats forecasts_;
  GroupHello model_;
  std::vector<std::pair<int, GroupCommand>> commands_;
};

}  // namespace bough::router
