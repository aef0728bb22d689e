// Every group as the router sees it: state, load, cached blocks, what is in flight there.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
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

  bool in_sync = false;  // the index holds all of the group's blocks as of `cache_seq`
  uint64_t cache_seq = 0;
  bool in_snapshot = false;

  BusyShare busy_share;           // from the loads it reported
  double unreported_seconds = 0;  // predicted prefill sent since last_load
  int requests_here = 0;          // this router's, in flight
  // Since the router connected.
  int64_t prompt_tokens = 0, cached_prompt_tokens = 0, generated_tokens = 0;

  bool draining() const { return drained_here || load.draining; }
  bool accepting() const { return phase == Phase::kReady && !draining(); }
};

// Not thread-safe. Groups are named by their index.
class GroupTable {
 public:
  explicit GroupTable(const std::vector<GroupAddress>& addresses);

  // False when the group may not serve here (another model, block size); last_error says why.
  bool OnHello(int group, GroupHello hello, absl::Time now);
  void OnProgress(int group, RankProgress progress, absl::Time now);
  void OnLoad(int group, const GroupLoad& load, absl::Time now);
  // True when the index has lost track and a new snapshot must be asked for.
  bool OnSnapshot(int group, const SnapshotChunk& chunk, absl::Time now);
  bool OnDelta(int group, const CacheDelta& delta, absl::Time now);
  void OnHeard(int group, absl::Time now) { groups_[group].last_heard = now; }
  // Forgets everything of the connection.
  void OnDown(int group, const std::string& why);

  bool IsSilent(int group, absl::Time now) const;

  // A request's prompt goes to a group; `chain` is counted there until Retire.
  void Dispatch(int group, std::span<const BlockHash> chain, double prefill_seconds);
  void Retire(int group, std::span<const BlockHash> chain);

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
  // What is served: the last Hello that was accepted; epoch 0 before the first.
  const GroupHello& model() const { return model_; }

 private:
  bool LoseSync(int group);

  std::vector<GroupState> groups_;
  PrefixIndex index_;
  ActivePrefixes active_;
  GroupHello model_;
};

}  // namespace bough::router
