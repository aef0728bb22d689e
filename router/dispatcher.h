// The router's core: every request in flight and every group, and what to do when something
// happens.
//
//   in:   Start, End (clients);  OnEvent, OnDown (groups);  Tick (time)
//   out:  Actions, collected until TakeActions: commands to groups, events to clients, links to
//   reset
//
// Sans-io: no thread, no socket, no clock of its own. `now` is a monotonic time and never goes
// back.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "common/grpc_status.h"
#include "common/tokenizer.h"
#include "router/admission.h"
#include "router/answer.h"
#include "router/client_events.h"
#include "router/config.h"
#include "router/group_table.h"
#include "router/placer.h"
#include "router/router_metrics.h"
#include "router/stream_relay.h"

namespace bough::router {

// Attempts after the first that lost groups may cost one request.
inline constexpr int kMaxRetries = 2;

struct Actions {
  std::vector<std::pair<int, GroupCommand>> commands;    // group, in order
  std::vector<std::pair<uint64_t, ClientEvent>> events;  // handle, in order
  std::vector<int> resets;  // groups whose link must be closed and opened again
};

// Not thread-safe.
class Dispatcher {
 public:
  // `tokenizer` and `metrics` outlive this.
  Dispatcher(const RouterConfig& config, const Tokenizer* tokenizer, RouterMetrics* metrics);

  // Admits a request, under `handle` from now on, or says why not. It goes to a group at once or, under
  // load, when its turn comes (admission.h).
  // REQUIRES: the request is valid for model().limits; handle was never used.
  std::optional<ApiError> Start(uint64_t handle, std::shared_ptr<const Request> request,
                                absl::Time now);
  // Why any request would be refused now, whatever it asks.
  std::optional<ApiError> CheckReady() const;
  // Ends a request: its group is told at once, its client gets `error`. False = not in flight.
  bool End(uint64_t handle, ApiError error, absl::Time now);
  // The handle of a request in flight; 0 = none.
  uint64_t FindRequest(const std::string& request_id) const;
  // Where a request would go now.
  std::vector<RouteTerm> Explain(const Request& request) const;

  void OnEvent(int group, GroupEvent event, absl::Time now);
  void OnDown(int group, const std::string& why, absl::Time now);
  // Deadlines and silent groups. Call every few milliseconds.
  void Tick(absl::Time now);

  // No new requests: for this router, or for one group (index).
  void SetDraining(bool on) { draining_ = on; }
  void SetGroupDraining(int group, bool on);

  Actions TakeActions() { return std::exchange(actions_, {}); }

  bool draining() const { return draining_; }
  int num_in_flight() const { return static_cast<int>(flights_.size()); }
  // Of these, at no group: their turn has not come.
  int num_held() const { return queue_.size(); }
  const GroupTable& groups() const { return groups_; }
  const GroupHello& model() const { return groups_.model(); }

 private:
  struct Flight {
    Flight(std::shared_ptr<const Request> r, const Tokenizer* tokenizer)
        : request(r), relay(r->best_of, kMaxRetries), answer(r, tokenizer) {}
    std::shared_ptr<const Request> request;
    StreamRelay relay;
    Answer answer;
    std::vector<BlockHash> chain;
    RequestSummary summary;
    std::vector<RouteTerm> route;
    // Of the last decision, and of the attempt that followed it.
    Forecast forecast;
    absl::Time sent;
    int rows_there = 0;  // on the group then, as GroupView::rows
    // As its Ack says: found, and how long it waited there; < 0 before that.
    int cached_tokens = 0;
    double queue_seconds_there = -1;
    std::optional<ApiError> lost;  // what its client is told if no group can take it again
    bool started = false;          // StartEvent was sent
    FinishReason last_finish = FinishReason::kStop;
  };
  using Flights = absl::flat_hash_map<uint64_t, std::unique_ptr<Flight>>;

  // Places the flight, after `backlog` seconds of other requests on each group.
  Placement Decide(Flight& flight, std::span<const double> backlog, absl::Time now);
  // Sends a flight to its group if that is free, else holds it; or says why it can never go.
  std::optional<ApiError> Admit(uint64_t handle, Flight& flight, absl::Time now);
  // Requests whose turn has come leave; those that cannot make it any more are refused.
  void PollQueue(absl::Time now);
  // False = it was not held.
  bool Unhold(uint64_t handle, const Flight& flight);
  // To the group of its last decision.
  void Submit(uint64_t handle, Flight& flight, int group, absl::Time now);
  // No group accepts any more.
  void FailHeld(absl::Time now);
  double Hold() const { return absl::ToDoubleSeconds(config_.admission_hold); }
  void Retire(uint64_t handle, const Flight& flight, bool refused = false);
  void SendGroupCommands();

  void OnHello(int group, GroupHello hello, absl::Time now);
  void OnAck(int group, const Ack& ack, absl::Time now);
  void OnRefused(int group, const Refused& refused, absl::Time now);
  void OnRow(int group, const TokenRow& row, absl::Time now);
  void OnFirstToken(int group, const Flight& flight, absl::Time now);
  void OnDone(int group, const Done& done, absl::Time now);
  void LoseFlights(int group, const std::string& why, absl::Time now);
  // After the relay ended an attempt: begin another, or give up with `error`.
  void Continue(uint64_t handle, Flight& flight, StreamRelay::Next next, ApiError error,
                absl::Time now);
  void SendStart(uint64_t handle, Flight& flight);
  void Complete(uint64_t handle, absl::Time now);
  void Fail(uint64_t handle, ApiError error, absl::Time now);
  // Takes the flight out and fills the durations of its summary.
  std::unique_ptr<Flight> Close(uint64_t handle, absl::Time now);
  Flight* Current(int group, uint64_t handle, int attempt);

  const RouterConfig config_;
  const Tokenizer* const tokenizer_;
  RouterMetrics* const metrics_;
  GroupTable groups_;
  Placer placer_;
  AdmissionQueue queue_;
  absl::Time next_poll_ = absl::InfinitePast();
  Flights flights_;
  absl::flat_hash_map<std::string, uint64_t> handles_;   // request id -> handle
  std::set<std::pair<absl::Time, uint64_t>> deadlines_;  // finite ones
  bool draining_ = false;
  Actions actions_;
};

}  // namespace bough::router
