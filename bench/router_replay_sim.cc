#include "bench/router_replay_sim.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <utility>

#include "bench/router_replay_cache.h"
#include "common/block_hash.h"
#include "common/check.h"

namespace bough {
namespace {

constexpr int kPolicyBlocks = kTraceBlockTokens / kBlockSize;  // per block of the trace

// What one router knows of one group beyond the group's report.
struct Link {
  explicit Link(int num_ids) : in_flight(num_ids) {}
  double unreported_seconds = 0, unreported_tokens = 0;
  int unreported_requests = 0, unreported_rows = 0;
  std::vector<uint16_t> in_flight;  // own requests, by block id
};

struct Router {
  std::vector<Link> links;
  ReplayChooser chooser;
  router::PrefillFit fit;
  router::MeanAnswer answer;
  router::AdmissionQueue queue;
};

struct Outcome {
  int group = -1, router = 0;
  double first_token = 0, done = 0;
  bool refused = false, rejected = false;
};

absl::Time ToTime(double seconds) { return absl::UnixEpoch() + absl::Seconds(seconds); }

double Uncached(const ReplayRequest& r, const ReplayView& v) {
  return r.input_tokens - std::min(v.group.matched_blocks * kBlockSize, r.input_tokens - 1);
}

double PrefillSeconds(const ReplayRequest& r, const ReplayView& v) {
  const double uncached = Uncached(r, v);
  return v.group.prefill.fitted()
             ? v.group.prefill.Seconds(uncached, r.input_tokens - uncached, v.group.rows)
             : uncached * v.group.prefill_seconds_per_token;
}

double Wait(const ReplayView& v) { return v.group.drain_seconds + v.group.unreported_seconds; }

double Percentile(std::vector<double>* sorted, double p) {
  if (sorted->empty()) return 0;
  return (*sorted)[static_cast<size_t>(p * (sorted->size() - 1))];
}

double Mean(const std::vector<double>& v) {
  double sum = 0;
  for (double x : v) sum += x;
  return v.empty() ? 0 : sum / v.size();
}

class Simulation {
 public:
  Simulation(const ReplayTrace& trace, const ReplayOptions& options);
  ReplayMetrics Run();

 private:
  void AdvanceTo(double t);
  void TakeEvents(int g);
  ReplayView View(const Router& router, int g, const ReplayRequest& request) const;
  void ViewAll(const Router& router, const ReplayRequest& request);
  int Choose(Router* router, const ReplayRequest& request, double seconds_left = 1e18);
  bool Refused(int g, double t);
  void Hold(int request, const ReplayView& view);
  void Dispatch(int request, int g, double t);
  void Arrive(int request);
  void Poll(int router, double t);
  void PollUntil(double t);
  ReplayMetrics Metrics() const;

  const ReplayTrace& trace_;
  const ReplayOptions options_;
  std::mt19937_64 rng_;
  std::vector<std::unique_ptr<ReplayGroup>> groups_;
  std::vector<Router> routers_;
  std::vector<ReplayLoad> reports_;  // the last, by group
  std::vector<double> report_at_;
  std::vector<Outcome> outcomes_;
  std::vector<ReplayView> views_;
  double now_ = 0;
  int64_t num_refused_ = 0;
};

Simulation::Simulation(const ReplayTrace& trace, const ReplayOptions& options)
    : trace_(trace),
      options_(options),
      rng_(options.seed),
      reports_(options.num_groups),
      report_at_(options.num_groups),
      outcomes_(trace.requests.size()),
      views_(options.num_groups) {
  for (int g = 0; g < options.num_groups; ++g) {
    groups_.push_back(std::make_unique<ReplayGroup>(options.group, trace));
    report_at_[g] = options.report_seconds * (g - options.num_groups) / options.num_groups;
    reports_[g] = groups_[g]->Load(0);
  }
  for (int r = 0; r < options.num_routers; ++r) {
    routers_.push_back(
        {std::vector<Link>(options.num_groups, Link(trace.num_ids)),
         ReplayChooser(options.rule, options.coefficients, options.num_groups, trace.num_ids,
                       options.seed + r),
         router::PrefillFit(options.num_groups),
         {},
         router::AdmissionQueue(options.admission.value_or(router::AdmissionConfig()))});
  }
}

void Simulation::TakeEvents(int g) {
  for (const ReplayEvent& e : groups_[g]->TakeEvents()) {
    Outcome& outcome = outcomes_[e.request];
    Router& router = routers_[outcome.router];
    if (e.kind == ReplayEvent::Kind::kFirstToken) {
      outcome.first_token = e.at;
      router.fit.Add(g, e.uncached, e.cached, e.rows, e.prefill_seconds);
    } else {
      outcome.done = e.at;
      router.answer.Add(trace_.requests[e.request].output_tokens);
      for (int id : trace_.requests[e.request].blocks) --router.links[g].in_flight[id];
    }
  }
}

// Brings every group to `t`, through the moment of its last report.
void Simulation::AdvanceTo(double t) {
  for (int g = 0; g < options_.num_groups; ++g) {
    const double ticks = std::floor((t - report_at_[g]) / options_.report_seconds);
    if (ticks >= 1) {
      report_at_[g] += ticks * options_.report_seconds;
      groups_[g]->AdvanceTo(report_at_[g]);
      reports_[g] = groups_[g]->Load(report_at_[g]);
      for (Router& router : routers_) {
        Link& link = router.links[g];
        link.unreported_seconds = link.unreported_tokens = 0;
        link.unreported_requests = link.unreported_rows = 0;
      }
    }
    groups_[g]->AdvanceTo(t);
    TakeEvents(g);
  }
}

ReplayView Simulation::View(const Router& router, int g, const ReplayRequest& request) const {
  const ReplayLoad& load = reports_[g];
  const Link& link = router.links[g];
  int active = 0;
  while (active < static_cast<int>(request.blocks.size()) &&
         link.in_flight[request.blocks[active]] > 0) {
    ++active;
  }
  ReplayView v;
  v.queued_tokens = load.queued_tokens + link.unreported_tokens;
  v.waiting = load.waiting + link.unreported_requests;
  v.used_blocks = load.used_blocks * kPolicyBlocks;
  router::GroupView& group = v.group;
  group.accepting = true;
  group.matched_blocks = std::max(groups_[g]->Match(request.blocks), active) * kPolicyBlocks;
  group.active_blocks = options_.price_sharing ? active * kPolicyBlocks : 0;
  group.drain_seconds = load.drain_seconds;
  group.unreported_seconds = link.unreported_seconds;
  group.prefill = router.fit.cost(g);
  group.prefill_seconds_per_token = load.prefill_seconds_per_token;
  group.decode_seconds_per_block = load.decode_seconds_per_block;
  group.busy_share = load.busy_share;
  group.total_blocks = options_.group.kv_blocks * kPolicyBlocks;
  group.free_blocks = load.free_blocks * kPolicyBlocks;
  group.requests = load.running + v.waiting;
  group.rows = load.rows + link.unreported_rows;
  group.active_unique_blocks = load.active_unique_blocks;
  return v;
}

void Simulation::ViewAll(const Router& router, const ReplayRequest& request) {
  for (int g = 0; g < options_.num_groups; ++g) views_[g] = View(router, g, request);
}

int Simulation::Choose(Router* router, const ReplayRequest& request, double seconds_left) {
  const router::RouteQuery query = {.prompt_tokens = request.input_tokens,
                                    .num_choices = request.num_choices,
                                    .max_tokens = 1024,
                                    .expected_answer_tokens = router->answer.value(),
                                    .seconds_left = seconds_left};
  return router->chooser.Choose(request, query, views_);
}

void Simulation::Hold(int request, const ReplayView& view) {
  const ReplayRequest& r = trace_.requests[request];
  routers_[outcomes_[request].router].queue.Push(
      {.handle = static_cast<uint64_t>(request),
       .tenant = "",
       .weight = 1,
       .arrival = ToTime(r.arrival),
       .prefill_seconds = PrefillSeconds(r, view),
       .deadline = ToTime(r.arrival + options_.deadline_seconds)});
}

// To group g as views_ shows it; the group may send it back once, with its load.
void Simulation::Dispatch(int request, int g, double t) {
  const ReplayRequest& r = trace_.requests[request];
  Router& router = routers_[outcomes_[request].router];
  if (!outcomes_[request].refused && Refused(g, t)) {
    outcomes_[request].refused = true;
    if (options_.admission) return Hold(request, views_[g]);
    g = Choose(&router, r);
  }
  Link& link = router.links[g];
  link.unreported_tokens += Uncached(r, views_[g]);
  link.unreported_seconds += PrefillSeconds(r, views_[g]);
  ++link.unreported_requests;
  link.unreported_rows += r.num_choices;
  for (int id : r.blocks) ++link.in_flight[id];
  outcomes_[request].group = g;
  groups_[g]->Submit(request, t);
}

void Simulation::Arrive(int request) {
  const ReplayRequest& r = trace_.requests[request];
  AdvanceTo(r.arrival);
  const int index = std::uniform_int_distribution<int>(0, options_.num_routers - 1)(rng_);
  outcomes_[request].router = index;
  ViewAll(routers_[index], r);
  const int g = Choose(&routers_[index], r);
  if (!options_.admission) return Dispatch(request, g, r.arrival);
  Hold(request, views_[g]);
  Poll(index, r.arrival);
}

// With fresh state in views_[g] then.
bool Simulation::Refused(int g, double t) {
  if (options_.num_routers == 1) return false;
  router::GroupView& view = views_[g].group;
  const double expected = view.drain_seconds + view.unreported_seconds;
  const ReplayLoad now = groups_[g]->Load(t);
  if (now.drain_seconds <= expected + std::max(0.05, expected / 4)) return false;
  ++num_refused_;
  view.drain_seconds = now.drain_seconds;
  view.unreported_seconds = 0;
  view.requests = now.running + now.waiting;
  views_[g].queued_tokens = now.queued_tokens;
  views_[g].waiting = now.waiting;
  return true;
}

void Simulation::Poll(int index, double t) {
  Router& router = routers_[index];
  std::vector<double> waits;
  for (int g = 0; g < options_.num_groups; ++g) {
    waits.push_back(reports_[g].drain_seconds + router.links[g].unreported_seconds);
  }
  auto place = [&](uint64_t handle, std::span<const double> backlog) {
    const ReplayRequest& r = trace_.requests[handle];
    ViewAll(router, r);
    router::AdmissionOffer offer;
    offer.soonest_seconds = 1e18;
    for (int g = 0; g < options_.num_groups; ++g) {
      views_[g].group.unreported_seconds += backlog[g];
      offer.soonest_seconds =
          std::min(offer.soonest_seconds, Wait(views_[g]) + PrefillSeconds(r, views_[g]));
    }
    offer.group = Choose(&router, r, r.arrival + options_.deadline_seconds - t);
    offer.wait_seconds = Wait(views_[offer.group]);
    offer.prefill_seconds = PrefillSeconds(r, views_[offer.group]);
    offer.uncached_tokens = Uncached(r, views_[offer.group]);
    return offer;
  };
  for (const router::AdmissionDecision& d : router.queue.Poll(ToTime(t), waits, place)) {
    const int request = static_cast<int>(d.handle);
    outcomes_[request].rejected = d.group < 0;
    if (d.group < 0) continue;
    ViewAll(router, trace_.requests[request]);
    Dispatch(request, d.group, t);
  }
}

// At every load report until `t`, while something is held.
void Simulation::PollUntil(double t) {
  auto held = [](const Router& r) { return r.queue.size() > 0; };
  while (std::any_of(routers_.begin(), routers_.end(), held)) {
    now_ += options_.report_seconds;
    if (now_ >= t) break;
    AdvanceTo(now_);
    for (size_t i = 0; i < routers_.size(); ++i) {
      if (held(routers_[i])) Poll(static_cast<int>(i), now_);
    }
  }
  now_ = t;
}

ReplayMetrics Simulation::Run() {
  const int num_requests = static_cast<int>(trace_.requests.size());
  for (int i = 0; i < num_requests; ++i) {
    PollUntil(trace_.requests[i].arrival);
    Arrive(i);
  }
  PollUntil(1e18);
  for (int g = 0; g < options_.num_groups; ++g) {
    groups_[g]->AdvanceTo(1e18);
    TakeEvents(g);
  }
  return Metrics();
}

ReplayMetrics Simulation::Metrics() const {
  ReplayMetrics m;
  std::vector<double> ttft, tpot;
  int64_t num_blocks = 0, num_good = 0, num_rejected = 0;
  for (size_t i = 0; i < outcomes_.size(); ++i) {
    const ReplayRequest& r = trace_.requests[i];
    const Outcome& o = outcomes_[i];
    num_rejected += o.rejected;
    if (o.rejected) continue;
    num_blocks += r.blocks.size();
    ttft.push_back(o.first_token - r.arrival);
    double per_token = 0;
    if (r.output_tokens > 1) {
      per_token = (o.done - o.first_token) / (r.output_tokens - 1);
      tpot.push_back(per_token);
    }
    num_good += ttft.back() <= options_.slo_ttft && per_token <= options_.slo_tpot;
  }
  std::sort(ttft.begin(), ttft.end());
  std::sort(tpot.begin(), tpot.end());
  m.ttft_mean = Mean(ttft);
  m.ttft_p50 = Percentile(&ttft, 0.5);
  m.ttft_p90 = Percentile(&ttft, 0.9);
  m.ttft_p99 = Percentile(&ttft, 0.99);
  m.tpot_mean = Mean(tpot);
  m.tpot_p99 = Percentile(&tpot, 0.99);
  m.goodput = num_good / (trace_.requests.back().arrival - trace_.requests.front().arrival);
  int64_t hits = 0, computed = 0, most = 0;
  for (const auto& group : groups_) {
    hits += group->num_hit_blocks();
    computed += group->computed_tokens();
    most = std::max(most, group->computed_tokens());
  }
  m.hit = static_cast<double>(hits) / num_blocks;
  m.imbalance = static_cast<double>(most) * options_.num_groups / computed;
  m.rejects = static_cast<double>(num_rejected) / outcomes_.size();
  m.refused = static_cast<double>(num_refused_) / outcomes_.size();
  return m;
}

}  // namespace

ReplayMetrics Replay(const ReplayTrace& trace, const ReplayOptions& options) {
  return Simulation(trace, options).Run();
}

ReplayOracle PooledOracle(const ReplayTrace& trace, const ReplayOptions& options) {
  ReplayCache cache(trace.num_ids, options.num_groups * options.group.kv_blocks);
  int64_t hits = 0, num_blocks = 0, uncached = 0;
  for (const ReplayRequest& r : trace.requests) {
    const int matched = cache.Match(r.blocks);
    const int length = static_cast<int>(r.blocks.size());
    for (int i = 0; i < matched; ++i) cache.Pin(r.blocks[i]);
    CHECK(cache.Reserve(length - matched)) << "a prompt exceeds all the groups' KV";
    for (int i = matched; i < length; ++i) cache.Store(r.blocks[i]);
    cache.Unpin(r.blocks);
    hits += matched;
    num_blocks += length;
    uncached += r.input_tokens - std::min(matched * kTraceBlockTokens, r.input_tokens - 1);
  }
  return {static_cast<double>(hits) / num_blocks,
          uncached * options.group.token_seconds / trace.requests.size()};
}

}  // namespace bough
