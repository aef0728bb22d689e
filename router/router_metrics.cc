#include "router/router_metrics.h"

#include "router/group_table.h"
#include "router/version.h"

namespace bough::router {
namespace {

constexpr absl::StatusCode kCodes[] = {
    absl::StatusCode::kOk,
    absl::StatusCode::kCancelled,
    absl::StatusCode::kUnknown,
    absl::StatusCode::kInvalidArgument,
    absl::StatusCode::kNotFound,
    absl::StatusCode::kAlreadyExists,
    absl::StatusCode::kAborted,
    absl::StatusCode::kResourceExhausted,
    absl::StatusCode::kInternal,
    absl::StatusCode::kUnavailable,
    absl::StatusCode::kDeadlineExceeded,
};
constexpr const char* kRejectReasons[] = {
    "INVALID_REQUEST", "MODEL_NOT_FOUND", "DUPLICATE_REQUEST", "QUEUE_FULL", "OVERLOADED",
    "MODEL_LOADING",   "NO_GROUP",        "DRAINING",          "DEADLINE",   "OTHER"};
constexpr const char* kFinishReasons[] = {"stop", "length", "cancelled", "deadline", "error"};

// From 1 us to 10 ms: a decision takes microseconds.
const std::vector<double>& DecisionBuckets() {
  static const std::vector<double> buckets = {1e-6, 2e-6,   5e-6, 1e-5, 2e-5,   5e-5,
                                              1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 1e-2};
  return buckets;
}

// A prediction is right at 1.
const std::vector<double>& RatioBuckets() {
  static const std::vector<double> buckets = {0.1, 0.25, 0.5, 0.75, 0.9, 1.1, 1.25,
                                              1.5, 2,    3,   5,    10,  30};
  return buckets;
}

// Tenants that are not named by --tenant-weights, in the metrics.
constexpr char kOtherTenants[] = "other";

}  // namespace

RouterMetrics::RouterMetrics(Metrics* m, const std::vector<GroupAddress>& groups,
                             const std::map<std::string, double>& tenants)
    : time_to_first_token(m->Histogram("time_to_first_token_seconds",
                                       "Arrival at the router to the first token.",
                                       Metrics::SecondsBuckets())),
      inter_token_latency(m->Histogram("inter_token_latency_seconds",
                                       "Gap between two tokens of one choice.",
                                       Metrics::SecondsBuckets())),
      time_per_output_token(m->Histogram("time_per_output_token_seconds",
                                         "Mean gap between tokens, one sample per request.",
                                         Metrics::SecondsBuckets())),
      route_decision(
          m->Histogram("route_decision_seconds", "Time to place one request.", DecisionBuckets())),
      held_time(m->Histogram("held_seconds", "Arrival to dispatch to a group.",
                             Metrics::SecondsBuckets())),
      ttft_over_predicted(m->Histogram("ttft_over_predicted_ratio",
                                       "Dispatch to first token, over what placement predicted.",
                                       RatioBuckets())),
      prompt_tokens(m->Counter("prompt_tokens_total", "Prompt tokens of admitted requests.")),
      cached_prompt_tokens(m->Counter("cached_prompt_tokens_total",
                                      "Prompt tokens whose KV was found in a prefix cache.")),
      generated_tokens(m->Counter("generated_tokens_total", "Tokens passed on to clients.")),
      cancelled(m->Counter("cancelled_total", "Requests whose client cancelled or vanished.")),
      within_slo(m->Counter("requests_within_slo_total",
                            "Finished requests that met --slo-ttft and --slo-itl.")),
      resumes(m->Counter("resumes_total",
                         "Requests that went on in another group after theirs was lost.")),
      requests_in_flight(m->Gauge("requests_in_flight", "Admitted requests that are not over.")),
      groups_ready(m->Gauge("groups_ready", "Groups that have loaded the model.")),
      index_blocks(m->Gauge("index_blocks", "Distinct KV blocks in the prefix index.")),
      index_bytes(m->Gauge("index_bytes", "Memory of the prefix index.")),
      cache_full_syncs_(m->Counter("cache_full_syncs_total",
                                   "Times that all of a group's cached blocks were asked for.")),
      cache_gaps_(m->Counter("cache_gaps_total", "Gaps found in a group's cache deltas.")),
      cache_repaired_buckets_(m->Counter("cache_repaired_buckets_total",
                                         "Index buckets (1/256) whose digest was wrong.")),
      cache_sync_bytes_(m->Counter("cache_sync_bytes_total",
                                   "Bytes of block hashes received outside of deltas.")),
      foreseen_cached_tokens_(m->Counter("foreseen_cached_tokens_total",
                                         "Prompt tokens of acknowledged requests that placement "
                                         "took to be in the group's prefix cache.")) {
  for (absl::StatusCode code : kCodes) {
    const Metrics::Labels labels = {{"code", absl::StatusCodeToString(code)}};
    requests_[code] = &m->Counter("requests_total", "Generate and GenerateStream calls.", labels);
    durations_[code] = &m->Histogram("request_duration_seconds", "Arrival to status.",
                                     Metrics::SecondsBuckets(), labels);
  }
  for (const char* reason : kRejectReasons) {
    rejected_[reason] = &m->Counter(
        "rejected_total", "Requests refused before any group took them.", {{"reason", reason}});
  }
  for (const char* reason : kFinishReasons) {
    finished_[reason] = &m->Counter("requests_finished_total",
                                    "Admitted requests by what ended them.", {{"reason", reason}});
  }
  const auto add_tenant = [&](const std::string& tenant) {
    held_[tenant] =
        &m->Gauge("requests_held", "Requests that wait here for their turn.", {{"tenant", tenant}});
  };
  add_tenant(kOtherTenants);
  for (const auto& [tenant, weight] : tenants) add_tenant(tenant);
  for (const char* outcome : {"confirmed", "expired", "refused"}) {
    forecasts_[outcome] = &m->Counter(
        "forecasts_total", "Dispatches by what became of the blocks that they were to leave.",
        {{"outcome", outcome}});
  }
  for (const GroupAddress& group : groups) {
    const Metrics::Labels labels = {{"group", group.name}};
    in_sync_[group.name] =
        &m->Gauge("group_in_sync", "1 when the index holds what the group caches.", labels);
    cache_lag_[group.name] = &m->Gauge(
        "group_cache_lag_deltas", "Cache deltas that the group sent and the index lacks.", labels);
    load_age_[group.name] =
        &m->Gauge("group_load_age_seconds", "Time since the group's last load report.", labels);
    group_up_[group.name] =
        &m->Gauge("group_up", "1 when the group has loaded the model.", {{"group", group.name}});
  }
  m->Gauge("build_info", "Always 1.", {{"version", kVersion}, {"role", "router"}}).Set(1);
}

void RouterMetrics::CountCall(absl::StatusCode code, double seconds) {
  if (!requests_.contains(code)) code = absl::StatusCode::kUnknown;
  requests_[code]->Increment();
  durations_[code]->Observe(seconds);
}

void RouterMetrics::CountRejected(const std::string& reason) {
  const auto it = rejected_.find(reason);
  (it == rejected_.end() ? rejected_["OTHER"] : it->second)->Increment();
}

void RouterMetrics::CountFinished(const std::string& reason) {
  const auto it = finished_.find(reason);
  (it == finished_.end() ? finished_["error"] : it->second)->Increment();
}

void RouterMetrics::AddHeld(const std::string& tenant, int change) {
  const auto it = held_.find(tenant);
  (it == held_.end() ? held_.at(kOtherTenants) : it->second)->Increment(change);
}

void RouterMetrics::SetGroupUp(const std::string& group, bool up) {
  if (const auto it = group_up_.find(group); it != group_up_.end()) it->second->Set(up);
}

void RouterMetrics::ObserveStreams(const GroupTable& groups, absl::Time now) {
  const auto raise_to = [](prometheus::Counter& counter, int64_t total) {
    counter.Increment(static_cast<double>(total) - counter.Value());
  };
  CacheStats sum;
  for (int g = 0; g < groups.size(); ++g) {
    const CacheFollower& cache = groups.cache(g);
    sum.full_syncs += cache.stats().full_syncs;
    sum.gaps += cache.stats().gaps;
    sum.buckets_repaired += cache.stats().buckets_repaired;
    sum.bucket_bytes += cache.stats().bucket_bytes;
    const std::string& name = groups[g].address.name;
    in_sync_.at(name)->Set(cache.in_sync() ? 1 : 0);
    cache_lag_.at(name)->Set(static_cast<double>(cache.lag()));
    const bool reported = groups[g].last_load != absl::InfinitePast();
    load_age_.at(name)->Set(reported ? absl::ToDoubleSeconds(now - groups[g].last_load) : 0);
  }
  raise_to(cache_full_syncs_, sum.full_syncs);
  raise_to(cache_gaps_, sum.gaps);
  raise_to(cache_repaired_buckets_, sum.buckets_repaired);
  raise_to(cache_sync_bytes_, sum.bucket_bytes);
  const ForecastStats& forecasts = groups.forecasts();
  raise_to(foreseen_cached_tokens_, forecasts.foreseen_cached_tokens);
  raise_to(*forecasts_.at("confirmed"), forecasts.confirmed);
  raise_to(*forecasts_.at("expired"), forecasts.expired);
  raise_to(*forecasts_.at("refused"), forecasts.refused);
}

}  // namespace bough::router
