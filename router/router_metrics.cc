#include "router/router_metrics.h"

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
constexpr const char* kRejectReasons[] = {"INVALID_REQUEST", "MODEL_NOT_FOUND", "DUPLICATE_REQUEST",
                                          "QUEUE_FULL",      "MODEL_LOADING",   "NO_GROUP",
                                          "DRAINING",        "DEADLINE",        "OTHER"};
constexpr const char* kFinishReasons[] = {"stop", "length", "cancelled", "deadline", "error"};

// From 1 us to 10 ms: a decision takes microseconds.
const std::vector<double>& DecisionBuckets() {
  static const std::vector<double> buckets = {1e-6, 2e-6,   5e-6, 1e-5, 2e-5,   5e-5,
                                              1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 1e-2};
  return buckets;
}

}  // namespace

RouterMetrics::RouterMetrics(Metrics* m, const std::vector<GroupAddress>& groups)
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
      index_blocks(m->Gauge("index_blocks", "Distinct KV blocks in the prefix index.")) {
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
  for (const GroupAddress& group : groups) {
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

void RouterMetrics::SetGroupUp(const std::string& group, bool up) {
  if (const auto it = group_up_.find(group); it != group_up_.end()) it->second->Set(up);
}

}  // namespace bough::router
