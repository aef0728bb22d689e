#include "router/group_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace bough::router {

GroupTable::GroupTable(const std::vector<GroupAddress>& addresses) {
  CHECK_LE(static_cast<int>(addresses.size()), kMaxGroups);
  for (const GroupAddress& address : addresses) {
    groups_.emplace_back().address = address;
  }
}

bool GroupTable::OnHello(int group, GroupHello hello, absl::Time now) {
  GroupState& g = groups_[group];
  g.last_heard = now;
  const bool others_serve = std::any_of(groups_.begin(), groups_.end(), [&](const GroupState& o) {
    return &o != &g && o.phase == GroupState::Phase::kReady;
  });
  std::string refusal;
  if (hello.block_size != kBlockSize) {
    refusal = absl::StrCat("has KV blocks of ", hello.block_size, " tokens, not ", kBlockSize);
  } else if (others_serve && hello.model_key != model_.model_key) {
    refusal = absl::StrCat("serves model_key ", hello.model_key, ", other groups serve ",
                           model_.model_key);
  }
  g.hello = std::move(hello);
  g.last_error = refusal;
  if (!refusal.empty()) {
    g.phase = GroupState::Phase::kConnecting;
    return false;
  }
  g.phase = g.hello.ready ? GroupState::Phase::kReady : GroupState::Phase::kLoading;
  if (g.hello.ready) {
    model_ = g.hello;
    for (auto& [rank, progress] : g.progress) progress.phase = "ready";
  }
  return true;
}

void GroupTable::OnProgress(int group, RankProgress progress, absl::Time now) {
  groups_[group].last_heard = now;
  const int rank = progress.rank;
  groups_[group].progress[rank] = std::move(progress);
}

void GroupTable::OnLoad(int group, const GroupLoad& load, absl::Time now) {
  GroupState& g = groups_[group];
  if (g.last_load != absl::InfinitePast()) {
    g.busy_share.Add(g.load.drain_seconds > 0, absl::ToDoubleSeconds(now - g.last_load));
  }
  g.load = load;
  g.last_heard = g.last_load = now;
  g.unreported_seconds = 0;
}

bool GroupTable::LoseSync(int group) {
  groups_[group].in_sync = false;
  index_.Clear(group);
  return true;
}

bool GroupTable::OnSnapshot(int group, const SnapshotChunk& chunk, absl::Time now) {
  GroupState& g = groups_[group];
  g.last_heard = now;
  if (chunk.epoch != g.hello.epoch) return false;
  if (!g.in_snapshot) index_.Clear(group);
  index_.Add(group, chunk.hashes);
  g.in_snapshot = !chunk.last;
  g.in_sync = chunk.last;
  g.cache_seq = chunk.seq;
  return false;
}

bool GroupTable::OnDelta(int group, const CacheDelta& delta, absl::Time now) {
  GroupState& g = groups_[group];
  g.last_heard = now;
  // Until the snapshot that was asked for is complete, deltas are already part of it.
  if (delta.epoch != g.hello.epoch || !g.in_sync) return false;
  if (delta.seq != g.cache_seq + 1) return LoseSync(group);
  g.cache_seq = delta.seq;
  if (delta.cleared) index_.Clear(group);
  index_.Add(group, delta.stored);
  index_.Remove(group, delta.removed);
  return index_.digest(group) != delta.digest && LoseSync(group);
}

void GroupTable::OnDown(int group, const std::string& why) {
  GroupState& g = groups_[group];
  index_.Clear(group);
  GroupState fresh;
  fresh.address = g.address;
  fresh.drained_here = g.drained_here;
  fresh.requests_here = g.requests_here;
  fresh.last_error = why;
  g = std::move(fresh);
}

bool GroupTable::IsSilent(int group, absl::Time now) const {
  const GroupState& g = groups_[group];
  if (g.last_heard == absl::InfinitePast()) return false;  // not connected
  const bool ready = g.phase == GroupState::Phase::kReady;
  return now - g.last_heard > (ready ? kSilenceLimit : kLoadingSilenceLimit);
}

void GroupTable::Dispatch(int group, std::span<const BlockHash> chain, double prefill_seconds) {
  active_.Add(group, chain);
  groups_[group].unreported_seconds += prefill_seconds;
  ++groups_[group].requests_here;
}

void GroupTable::Retire(int group, std::span<const BlockHash> chain) {
  active_.Remove(group, chain);
  --groups_[group].requests_here;
}

std::vector<GroupView> GroupTable::Views(std::span<const BlockHash> chain,
                                         uint64_t excluded) const {
  const auto cached = index_.Match(chain);
  const auto active = active_.Match(chain);
  std::vector<GroupView> views(groups_.size());
  for (int i = 0; i < size(); ++i) {
    const GroupState& g = groups_[i];
    GroupView& v = views[i];
    v.accepting = g.accepting() && !(excluded >> i & 1);
    v.matched_blocks = std::max(cached[i], active[i]);
    v.active_blocks = active[i];
    v.drain_seconds = g.load.drain_seconds;
    v.unreported_seconds = g.unreported_seconds;
    v.prefill_seconds_per_token = g.load.prefill_seconds_per_token;
    v.decode_seconds_per_block = g.load.decode_seconds_per_block;
    v.busy_share = g.busy_share.value();
    v.total_blocks = g.hello.total_blocks;
    v.free_blocks = g.last_load == absl::InfinitePast() ? g.hello.total_blocks : g.load.free_blocks;
    v.running = g.load.running;
    v.requests = std::max(g.load.running + g.load.waiting, g.requests_here);
  }
  return views;
}

int GroupTable::num_ready() const {
  return static_cast<int>(std::count_if(groups_.begin(), groups_.end(), [](const GroupState& g) {
    return g.phase == GroupState::Phase::kReady;
  }));
}

int GroupTable::num_accepting() const {
  return static_cast<int>(std::count_if(groups_.begin(), groups_.end(),
                                        [](const GroupState& g) { return g.accepting(); }));
}

bool GroupTable::any_loading() const {
  return std::any_of(groups_.begin(), groups_.end(),
                     [](const GroupState& g) { return g.phase == GroupState::Phase::kLoading; });
}

int GroupTable::Find(const std::string& name) const {
  for (int i = 0; i < size(); ++i) {
    if (groups_[i].address.name == name) return i;
  }
  return -1;
}

}  // namespace bough::router
