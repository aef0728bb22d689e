#include "router/admission.h"

#include <algorithm>
#include <queue>
#include <tuple>

#include "common/check.h"

namespace bough::router {

void AdmissionQueue::Push(const AdmissionRequest& request) {
  CHECK_GT(request.weight, 0);
  Tenant& tenant = tenants_[request.tenant];
  // Who had nothing to send has saved nothing up.
  if (tenant.by_due.empty()) tenant.clock = std::max(tenant.clock, clock_);
  tenant.weight = request.weight;
  const absl::Time due = request.arrival + absl::Seconds(config_.slo_seconds +
                                                         config_.stretch * request.prefill_seconds);
  tenant.by_due.insert({due, request.handle});
  const bool added = entries_.emplace(request.handle, Entry{request, due, false, {}, {}}).second;
  CHECK(added) << "handle held twice";
}

bool AdmissionQueue::Remove(uint64_t handle) {
  const auto it = entries_.find(handle);
  if (it == entries_.end()) return false;
  tenants_.at(it->second.request.tenant).by_due.erase({it->second.due, handle});
  entries_.erase(it);
  return true;
}

std::vector<AdmissionDecision> AdmissionQueue::Poll(absl::Time now, std::span<const double> waits,
                                                    Place place) {
  std::erase_if(tenants_, [this](const auto& item) {
    return item.second.by_due.empty() && item.second.clock <= clock_;
  });
  // The order in which everything held would go: tenants by their clocks, which run ahead here.
  struct Next {
    double clock;
    Tenant* tenant;
    std::set<std::pair<absl::Time, uint64_t>>::iterator at;
    absl::Time due() const { return at->first; }
    bool operator<(const Next& o) const {  // a heap's top is its largest
      return std::tuple(clock, due()) > std::tuple(o.clock, o.due());
    }
  };
  std::priority_queue<Next> order;
  for (auto& [name, tenant] : tenants_) {
    if (!tenant.by_due.empty()) order.push({tenant.clock, &tenant, tenant.by_due.begin()});
  }
  std::vector<double> backlog(waits.size());
  auto open = [&](size_t g) { return waits[g] + backlog[g] <= config_.hold_seconds; };
  bool any_open = true;
  std::vector<AdmissionDecision> decisions;
  while (!order.empty()) {
    Next next = order.top();
    order.pop();
    Entry& entry = entries_.at(next.at->second);
    if (any_open) {
      any_open = false;
      for (size_t g = 0; g < waits.size() && !any_open; ++g) any_open = open(g);
    }
    // With no group open nothing can go, and what was placed before stands in for a new placement.
    if (any_open || !entry.placed) {
      entry.offer = place(entry.request.handle, backlog);
      entry.soonest = now + absl::Seconds(entry.offer.soonest_seconds);
      entry.placed = true;
    }
    const AdmissionOffer offer = entry.offer;
    const AdmissionRequest request = entry.request;
    ++next.at;
    if (offer.group >= 0) {
      const absl::Time soonest = std::max(entry.soonest, now);
      if (soonest > request.deadline) {
        decisions.push_back({request.handle, -1, soonest - request.deadline});
        Remove(request.handle);
      } else {
        if (any_open && offer.wait_seconds <= config_.hold_seconds) {
          decisions.push_back({request.handle, offer.group, absl::ZeroDuration()});
          clock_ = std::max(clock_, next.tenant->clock);
          next.tenant->clock += offer.uncached_tokens / next.tenant->weight;
          Remove(request.handle);
        }
        backlog[offer.group] += offer.prefill_seconds;
        next.clock += offer.uncached_tokens / next.tenant->weight;
      }
    }
    if (next.at != next.tenant->by_due.end()) order.push(next);
  }
  return decisions;
}

}  // namespace bough::router
