#include "worker/worker_metrics.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace bough {
namespace {

constexpr const char* kReasons[] = {"stop",       "length",   "cancelled", "deadline",
                                    "queue_full", "draining", "invalid",   "error"};
constexpr const char* kStepPhases[] = {"prefill", "decode", "mixed"};

std::string ReasonOf(const DoneEvent& done, Finish last_finish) {
  if (done.status.ok()) return last_finish == Finish::kLength ? "length" : "stop";
  const std::string reason = absl::AsciiStrToLower(done.reason);
  const bool known =
      std::find(std::begin(kReasons), std::end(kReasons), reason) != std::end(kReasons);
  return known ? reason : "error";
}

std::vector<double> BatchBuckets() {
  return {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192};
}

}  // namespace

RankMetrics::RankMetrics(Metrics* metrics, int rank)
    : weights_(metrics->Gauge("model_load_progress_ratio", "Done share of a start-up phase",
                              {{"rank", absl::StrCat(rank)}, {"phase", "weights"}})),
      ready_(metrics->Gauge("model_load_progress_ratio", "Done share of a start-up phase",
                            {{"rank", absl::StrCat(rank)}, {"phase", "ready"}})),
      up_(metrics->Gauge("worker_up", "1 while this rank serves", {{"rank", absl::StrCat(rank)}})) {
  for (const char* phase : {"load", "total"}) {
    startup_[phase] =
        &metrics->Gauge("startup_phase_seconds", "Time that start-up took", {{"phase", phase}});
  }
  metrics->Gauge("build_info", "1; the version is the label", {{"version", BOUGH_VERSION}}).Set(1);
}

void RankMetrics::ObserveProgress(const RankProgress& progress) {
  const double total = static_cast<double>(std::max<int64_t>(progress.bytes_total, 1));
  if (progress.phase == "weights") {
    weights_.Set(std::min(1.0, static_cast<double>(progress.bytes_done) / total));
  }
}

void RankMetrics::ObserveStartup(const std::string& phase, absl::Duration duration) {
  startup_.at(phase)->Set(absl::ToDoubleSeconds(duration));
}

void RankMetrics::SetUp(bool up) {
  ready_.Set(up ? 1 : 0);
  up_.Set(up ? 1 : 0);
}

std::vector<FinishedRequest> FinishedRequests(const StepEvents& events) {
  absl::flat_hash_map<RequestKey, Finish> last_finish;
  if (!events.dones.empty()) {
    for (const TokenEvent& token : events.tokens) {
      if (token.finish != Finish::kNone) last_finish[token.key] = token.finish;
    }
  }
  std::vector<FinishedRequest> finished;
  for (const DoneEvent& done : events.dones) {
    const auto it = last_finish.find(done.key);
    const Finish finish = it == last_finish.end() ? Finish::kNone : it->second;
    finished.push_back({&done, ReasonOf(done, finish)});
  }
  return finished;
}

void LogFinished(const FinishedRequest& request) {
  const DoneEvent& done = *request.done;
  nlohmann::json fields = {{"request_id", done.request_id},
                           {"link", done.key.link},
                           {"attempt", done.attempt},
                           {"reason", request.reason},
                           {"prompt_tokens", done.prompt_tokens},
                           {"cached_tokens", done.cached_tokens},
                           {"generated_tokens", done.generated_tokens},
                           {"queue_seconds", absl::ToDoubleSeconds(done.queue_time)},
                           {"prefill_seconds", absl::ToDoubleSeconds(done.prefill_time)},
                           {"decode_seconds", absl::ToDoubleSeconds(done.decode_time)}};
  if (!done.traceparent.empty()) fields["traceparent"] = done.traceparent;
  if (!done.stage.empty()) fields["stage"] = done.stage;
  LogInfo("request finished", std::move(fields));
}

EngineMetrics::EngineMetrics(Metrics* m, int num_blocks)
    : running_(m->Gauge("requests_running", "Requests in the running batch")),
      waiting_(m->Gauge("requests_waiting", "Requests that wait for their first step")),
      kv_usage_(m->Gauge("kv_cache_usage_ratio", "KV blocks that running requests hold, of all")),
      queried_tokens_(m->Counter("prefix_cache_queried_tokens_total",
                                 "Prompt tokens looked up in the prefix cache")),
      hit_tokens_(
          m->Counter("prefix_cache_hit_tokens_total", "Prompt tokens found in the prefix cache")),
      prompt_tokens_(m->Counter("prompt_tokens_total", "Prompt tokens of admitted requests")),
      generated_tokens_(m->Counter("generated_tokens_total", "Tokens sampled")),
      preemptions_(m->Counter("preemptions_total", "Sequences put back to waiting for want of KV")),
      queue_seconds_(m->Histogram("request_queue_seconds", "Arrival to first step",
                                  Metrics::SecondsBuckets())),
      prefill_seconds_(m->Histogram("request_prefill_seconds", "First step to first token",
                                    Metrics::SecondsBuckets())),
      decode_seconds_(
          m->Histogram("request_decode_seconds", "First token to last", Metrics::SecondsBuckets())),
      batch_tokens_(m->Histogram("batch_tokens", "Tokens in one step", BatchBuckets())) {
  for (const char* reason : kReasons) {
    finished_[reason] = &m->Counter("requests_finished_total", "Requests that ended, by reason",
                                    {{"reason", reason}});
  }
  for (const char* phase : kStepPhases) {
    step_seconds_[phase] = &m->Histogram("step_seconds", "Wall time of one step of the model",
                                         Metrics::SecondsBuckets(), {{"phase", phase}});
  }
  m->Gauge("kv_cache_config_info", "1; the cache's shape is in the labels",
           {{"block_size", absl::StrCat(kBlockSize)}, {"num_blocks", absl::StrCat(num_blocks)}})
      .Set(1);
}

void EngineMetrics::Observe(const StepEvents& events,
                            const std::vector<FinishedRequest>& finished) {
  const LoadReport& load = events.load;
  running_.Set(load.running);
  waiting_.Set(load.waiting);
  kv_usage_.Set(static_cast<double>(load.used_blocks) / std::max(load.total_blocks, 1));
  preemptions_.Increment(static_cast<double>(load.preemptions - preemptions_seen_));
  preemptions_seen_ = load.preemptions;
  generated_tokens_.Increment(static_cast<double>(events.tokens.size()));
  ObserveStep(events);
  for (const FinishedRequest& request : finished) ObserveFinished(request);
}

void EngineMetrics::ObserveStep(const StepEvents& events) {
  const int num_tokens = events.prefill_tokens + events.decode_rows;
  if (num_tokens == 0) return;
  const char* phase = events.prefill_tokens == 0 ? "decode"
                      : events.decode_rows == 0  ? "prefill"
                                                 : "mixed";
  step_seconds_.at(phase)->Observe(absl::ToDoubleSeconds(events.step_time));
  batch_tokens_.Observe(num_tokens);
}

void EngineMetrics::ObserveFinished(const FinishedRequest& request) {
  const DoneEvent& done = *request.done;
  finished_.at(request.reason)->Increment();
  const bool admitted = done.prefill_time > absl::ZeroDuration() || done.generated_tokens > 0;
  if (!admitted) return;
  queried_tokens_.Increment(done.prompt_tokens);
  prompt_tokens_.Increment(done.prompt_tokens);
  hit_tokens_.Increment(done.cached_tokens);
  queue_seconds_.Observe(absl::ToDoubleSeconds(done.queue_time));
  if (done.generated_tokens == 0) return;
  prefill_seconds_.Observe(absl::ToDoubleSeconds(done.prefill_time));
  decode_seconds_.Observe(absl::ToDoubleSeconds(done.decode_time));
}

}  // namespace bough
