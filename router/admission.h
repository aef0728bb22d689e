// Which waiting request goes next, and where waiting is in vain. Requests wait here rather than at a
// group, so that they are bound late, with what is known then:
//
//   tenants    share by virtual time: a tenant's clock advances by the uncached tokens it was given,
//              over its weight, and the tenant furthest behind goes next. A flood delays its sender
//   deadline   within a tenant the earliest `due` goes first. due = arrival + slo + stretch * prefill: a
//              long prompt takes its time anyway, so it can wait longer for the same slowdown
//   binding    a request leaves when the group that placement prefers has at most `hold_seconds`
//              (about one prefill chunk) before it; else it stays, and counts there for those after it
//   rejection  when even the soonest group is predicted to miss the request's deadline
//
// Use (the dispatcher): Push on arrival, Poll after it and on every load report and tick; carry out the
// decisions in order; Remove when a client goes. Poll asks `place` for a request's placement, with the
// seconds of others that go before it on each group: add them to GroupView::unreported_seconds, set
// RouteQuery::seconds_left to what is left until the deadline, then PlaceRequest. A group that sends a
// request back: Push it again.
//
// Sans-io: no clock of its own. Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/time/time.h"

namespace bough::router {

struct AdmissionConfig {
  double hold_seconds = 0.1;
  // due = arrival + slo + stretch * prefill seconds.
  double slo_seconds = 1;
  double stretch = 4;
};

struct AdmissionRequest {
  uint64_t handle = 0;
  std::string tenant;
  double weight = 1;  // the tenant's share; > 0
  absl::Time arrival;
  double prefill_seconds = 0;  // by its first placement
  // First token later than this is worth nothing; InfiniteFuture = never rejected.
  absl::Time deadline = absl::InfiniteFuture();
};

// What placement says of a request.
struct AdmissionOffer {
  int group = -1;           // -1 = none accepts
  double wait_seconds = 0;  // there
  double prefill_seconds = 0;
  double uncached_tokens = 0;
  double soonest_seconds = 0;  // to the first token, on the group where it is least
};

struct AdmissionDecision {
  uint64_t handle = 0;
  int group = -1;  // -1 = rejected
  absl::Duration retry_after =
      absl::ZeroDuration();  // of a rejection: when it could meet its deadline
};

class AdmissionQueue {
 public:
  // `backlog[g]`: seconds on group g of requests that go before this one.
  using Place = absl::FunctionRef<AdmissionOffer(uint64_t handle, std::span<const double> backlog)>;

  explicit AdmissionQueue(const AdmissionConfig& config) : config_(config) {}

  // REQUIRES: the handle is not held.
  void Push(const AdmissionRequest& request);
  // False = not held.
  bool Remove(uint64_t handle);
  // Every held request that can go, or cannot make it, in order. `waits[g]`: seconds of queue at group g;
  // infinite where it does not accept.
  std::vector<AdmissionDecision> Poll(absl::Time now, std::span<const double> waits, Place place);

  int size() const { return static_cast<int>(entries_.size()); }

 private:
  struct Entry {
    AdmissionRequest request;
    absl::Time due;
    bool placed = false;
    AdmissionOffer offer;  // of its last placement
    absl::Time soonest;    // the first token, by that
  };
  struct Tenant {
    double clock = 0;  // virtual
    double weight = 1;
    std::set<std::pair<absl::Time, uint64_t>> by_due;
  };

  const AdmissionConfig config_;
  absl::flat_hash_map<uint64_t, Entry> entries_;
  std::map<std::string, Tenant> tenants_;  // that hold something, or are ahead of clock_
  double clock_ = 0;                       // virtual time of what went last
};

}  // namespace bough::router
