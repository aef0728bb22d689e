#include "router/group_table.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace bough::router {
namespace {

// A request that should start at once may still wait for the step in progress.
constexpr absl::Duration kMinConfirmTime = absl::Milliseconds(100);

}  // namespace

GroupTable::GroupTable(const std::vector<GroupAddress>& addresses) {
  CHECK_LE(static_cast<int>(addresses.size()), kMaxGroups);
  for (const GroupAddress& address : addresses) {
    caches_.emplace_back(size(), &index_);
    groups_.emplace_back().address = address;
  }
}

void GroupTable::Send(int group, CacheFollower::Command command) {
  if (command) commands_.emplace_back(group, *std::move(command));
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
    // Bucket contents come region by region: none may be full while the others are empty.
    int64_t total_blocks = 0;
    for (const GroupState& o : groups_) total_blocks += o.hello.total_blocks;
    index_.Reserve(static_cast<size_t>(total_blocks));
    Send(group, caches_[group].OnReady(g.hello.epoch, now));
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
  if (load.epoch != g.hello.epoch || load.submits < g.load.submits) return;  // of another time
  const uint64_t newly_counted = load.submits - g.load.submits;
  if (g.last_load != absl::InfinitePast()) {
    g.busy_share.Add(g.load.drain_seconds > 0, absl::ToDoubleSeconds(now - g.last_load));
  }
  g.load = load;
  g.last_heard = g.last_load = now;
  for (uint64_t i = 0; i < newly_counted && !g.unreported.empty(); ++i) g.unreported.pop_front();
  g.unreported_seconds = std::accumulate(g.unreported.begin(), g.unreported.end(), 0.0);
  Send(group, caches_[group].On(load, now));
}

void GroupTable::OnDown(int group, const std::string& why, absl::Time now) {
  GroupState& g = groups_[group];
  caches_[group].OnDown(now);
  GroupState fresh;
  fresh.address = g.address;
  fresh.drained_here = g.drained_here;
  fresh.requests_here = g.requests_here;
  fresh.last_error = why;
  g = std::move(fresh);
}

void GroupTable::Tick(absl::Time now) {
  for (int g = 0; g < size(); ++g) Send(g, caches_[g].Tick(now));
  index_.Sweep();
  while (!unconfirmed_.empty() && unconfirmed_.begin()->first <= now) {
    InFlight& request = in_flight_.at(unconfirmed_.begin()->second);
    unconfirmed_.erase(unconfirmed_.begin());
    active_.Remove(request.group, request.chain);
    request.counts = false;
    ++forecasts_.expired;
  }
}

bool GroupTable::IsSilent(int group, absl::Time now) const {
  const GroupState& g = groups_[group];
  if (g.last_heard == absl::InfinitePast()) return false;  // not connected
  const bool ready = g.phase == GroupState::Phase::kReady;
  return now - g.last_heard > (ready ? kSilenceLimit : kLoadingSilenceLimit);
}

void GroupTable::Dispatch(uint64_t handle, int group, std::span<const BlockHash> chain,
                          const Forecast& forecast, absl::Time now) {
  active_.Add(group, chain);
  const double admission = forecast.wait_seconds + forecast.prefill_seconds;
  const absl::Time expires = now + kMinConfirmTime + 2 * absl::Seconds(admission);
  const bool is_new =
      in_flight_.insert({handle, {group, chain, forecast.cached_tokens, expires}}).second;
  CHECK(is_new) << "handle " << handle << " is in flight";
  unconfirmed_.insert({expires, handle});
  GroupState& g = groups_[group];
  g.unreported.push_back(forecast.prefill_seconds);
  g.unreported_seconds += forecast.prefill_seconds;
  ++g.requests_here;
}

void GroupTable::Confirm(uint64_t handle, int cached_tokens) {
  InFlight& request = in_flight_.at(handle);
  if (std::exchange(request.confirmed, true)) return;
  unconfirmed_.erase({request.expires, handle});
  if (!std::exchange(request.counts, true)) active_.Add(request.group, request.chain);
  ++forecasts_.confirmed;
  forecasts_.foreseen_cached_tokens += request.foreseen_cached_tokens;
  forecasts_.found_cached_tokens += cached_tokens;
}

void GroupTable::Retire(uint64_t handle, bool refused) {
  const auto node = in_flight_.extract(handle);
  CHECK(!node.empty()) << "handle " << handle;
  const InFlight& request = node.mapped();
  unconfirmed_.erase({request.expires, handle});
  if (request.counts) active_.Remove(request.group, request.chain);
  if (refused && !request.confirmed) ++forecasts_.refused;
  --groups_[request.group].requests_here;
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
    v.matched_blocks = std::max(caches_[i].in_sync() ? cached[i] : 0, active[i]);
    v.active_blocks = active[i];
    v.drain_seconds = g.load.drain_seconds;
    v.unreported_seconds = g.unreported_seconds;
    v.prefill_seconds_per_token = g.load.prefill_seconds_per_token;
    v.decode_seconds_per_block = g.load.decode_seconds_per_block;
    v.busy_share = g.busy_share.value();
    v.total_blocks = g.hello.total_blocks;
    v.free_blocks = g.last_load == absl::InfinitePast() ? g.hello.total_blocks : g.load.free_blocks;
    v.requests = g.num_requests();
    v.rows = v.requests;
    v.active_unique_blocks = g.load.active_unique_blocks;
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
