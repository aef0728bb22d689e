#include "router/dispatcher.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "router/api_errors.h"

namespace bough::router {
namespace {

double Since(absl::Time from, absl::Time to) { return absl::ToDoubleSeconds(to - from); }

// Between two looks at the queue, for each request in it: under overload they cost a fifth of a core at
// most.
constexpr absl::Duration kPollSpacing = absl::Microseconds(10);

// When a refused client should come back: when the least loaded group has served its queue.
absl::Duration RetryAfter(const GroupTable& groups) {
  double shortest = 10;
  for (int g = 0; g < groups.size(); ++g) {
    if (groups[g].accepting()) shortest = std::min(shortest, groups[g].load.drain_seconds);
  }
  return absl::Seconds(std::max(shortest, 0.1));
}

}  // namespace

Dispatcher::Dispatcher(const RouterConfig& config, const Tokenizer* tokenizer,
                       RouterMetrics* metrics)
    : config_(config),
      tokenizer_(tokenizer),
      metrics_(metrics),
      groups_(config.groups),
      placer_(&groups_),
      queue_({.hold_seconds = absl::ToDoubleSeconds(config.admission_hold),
              .slo_seconds = config.slo_ttft}) {}

// ---- placement and admission ----

std::vector<RouteTerm> Dispatcher::Explain(const Request& request) const {
  return placer_.Explain(placer_.Place(request, placer_.Chain(request), /*excluded=*/0),
                         /*excluded=*/0);
}

Placement Dispatcher::Decide(Flight& flight, std::span<const double> backlog, absl::Time now) {
  const uint64_t excluded = flight.relay.excluded_groups();
  const auto begin = std::chrono::steady_clock::now();
  const Placement placement = placer_.Place(*flight.request, flight.chain, excluded,
                                            Since(now, flight.request->deadline), backlog);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  metrics_->route_decision.Observe(took.count());
  if (flight.request->explain_route) flight.route = placer_.Explain(placement, excluded);
  if (placement.chosen >= 0) {
    const Candidate& chosen = placement.candidates[placement.chosen];
    flight.forecast = {chosen.terms.wait, chosen.prefill_seconds, chosen.matched_tokens};
  }
  return placement;
}

std::optional<ApiError> Dispatcher::Admit(uint64_t handle, Flight& flight, absl::Time now) {
  const Placement placement = Decide(flight, {}, now);
  if (placement.chosen < 0) return NoGroup("no group accepts the request");
  const Request& request = *flight.request;
  AdmissionRequest held = {.handle = handle,
                           .tenant = request.tenant,
                           .weight = 1,
                           // Higher priority first, as at the group.
                           .arrival = request.arrival - request.priority * absl::Hours(1),
                           .prefill_seconds = flight.forecast.prefill_seconds};
  // What a lost group had begun is never refused: its client was promised an answer.
  if (flight.relay.attempt() == 0) {
    held.deadline = std::min(request.deadline, request.arrival + config_.max_queue_wait +
                                                   absl::Seconds(flight.forecast.prefill_seconds));
  }
  const absl::Time soonest = now + absl::Seconds(placer_.SoonestFirstToken(placement));
  if (soonest > held.deadline) return Overloaded(soonest - held.deadline);
  if (queue_.size() == 0 && flight.forecast.wait_seconds <= Hold()) {
    Submit(handle, flight, placement.chosen, now);
    return std::nullopt;
  }
  const auto weight = config_.tenant_weights.find(request.tenant);
  if (weight != config_.tenant_weights.end()) held.weight = weight->second;
  queue_.Push(held);
  metrics_->AddHeld(request.tenant, 1);
  PollQueue(now);
  return std::nullopt;
}

void Dispatcher::PollQueue(absl::Time now) {
  if (queue_.size() == 0 || now < next_poll_) return;
  std::vector<double> waits;
  for (int g = 0; g < groups_.size(); ++g) {
    waits.push_back(groups_[g].accepting()
                        ? groups_[g].load.drain_seconds + groups_[g].unreported_seconds
                        : std::numeric_limits<double>::infinity());
  }
  std::vector<uint64_t> homeless;  // no group that may take it accepts
  const auto place = [&](uint64_t handle, std::span<const double> backlog) {
    Flight& flight = *flights_.at(handle);
    const Placement placement = Decide(flight, backlog, now);
    if (placement.chosen < 0) {
      homeless.push_back(handle);
      return AdmissionOffer{};
    }
    const double cached = flight.forecast.cached_tokens;
    return AdmissionOffer{
        .group = placement.chosen,
        .wait_seconds = flight.forecast.wait_seconds,
        .prefill_seconds = flight.forecast.prefill_seconds,
        .uncached_tokens = static_cast<double>(flight.request->prompt_ids.size()) - cached,
        .soonest_seconds = placer_.SoonestFirstToken(placement)};
  };
  for (const AdmissionDecision& decision : queue_.Poll(now, waits, place)) {
    Flight& flight = *flights_.at(decision.handle);
    metrics_->AddHeld(flight.request->tenant, -1);
    if (decision.group < 0) {
      const bool late = flight.request->deadline <= now;  // Tick would have said so in a moment
      Fail(decision.handle, late ? DeadlineExceeded("queue") : Overloaded(decision.retry_after),
           now);
    } else {
      Submit(decision.handle, flight, decision.group, now);
    }
  }
  for (uint64_t handle : homeless) {
    std::optional<ApiError> lost = flights_.at(handle)->lost;
    Fail(handle, lost ? *std::move(lost) : NoGroup("no group accepts the request any more"), now);
  }
  next_poll_ = now + queue_.size() * kPollSpacing;
}

bool Dispatcher::Unhold(uint64_t handle, const Flight& flight) {
  if (!queue_.Remove(handle)) return false;
  metrics_->AddHeld(flight.request->tenant, -1);
  return true;
}

void Dispatcher::Submit(uint64_t handle, Flight& flight, int group, absl::Time now) {
  flight.rows_there = groups_[group].num_requests();
  groups_.Dispatch(handle, group, flight.chain, flight.forecast, now);
  flight.sent = now;
  flight.queue_seconds_there = -1;
  metrics_->held_time.Observe(Since(flight.request->arrival, now));
  flight.summary.group = groups_[group].address.name;
  StreamRelay::Attempt attempt = flight.relay.Begin(group, groups_[group].hello.epoch);
  SubmitCommand submit{.handle = handle,
                       .group = groups_[group].hello.group,
                       .epoch = groups_[group].hello.epoch,
                       .attempt = attempt.number,
                       .request = flight.request,
                       .choices = std::move(attempt.choices),
                       .timeout = flight.request->deadline - now,
                       .expected_cached_tokens = flight.forecast.cached_tokens};
  // A group may send a request back once; where it goes then it stays.
  if (attempt.number == 1) submit.expected_wait_seconds = flight.forecast.wait_seconds;
  actions_.commands.emplace_back(group, std::move(submit));
}

void Dispatcher::Retire(uint64_t handle, const Flight& flight, bool refused) {
  if (flight.relay.group() >= 0) groups_.Retire(handle, refused);
}

// ---- clients ----

std::optional<ApiError> Dispatcher::CheckReady() const {
  if (draining_) return RouterDraining();
  if (groups_.num_accepting() > 0) return std::nullopt;
  if (groups_.num_ready() > 0) {
    return NoGroup(absl::StrCat("all ", groups_.num_ready(), " ready groups are draining"));
  }
  if (groups_.any_loading()) return ModelLoading();
  std::string why = absl::StrCat("none of the ", groups_.size(), " groups is connected");
  for (int g = 0; g < groups_.size(); ++g) {
    if (groups_[g].last_error.empty()) continue;
    absl::StrAppend(&why, "; ", groups_[g].address.name, ": ", groups_[g].last_error);
    break;
  }
  return NoGroup(why);
}

std::optional<ApiError> Dispatcher::Start(uint64_t handle, std::shared_ptr<const Request> request,
                                          absl::Time now) {
  if (auto error = CheckReady()) return error;
  if (request->deadline <= now) return DeadlineExceeded("queue");
  if (handles_.contains(request->id)) return DuplicateRequest(request->id);
  if (num_in_flight() >= config_.max_requests_in_flight) {
    return TooManyInFlight(config_.max_requests_in_flight, RetryAfter(groups_));
  }
  auto flight = std::make_unique<Flight>(request, tokenizer_);
  flight->chain = placer_.Chain(*request);
  flight->summary.prompt_tokens = static_cast<int>(request->prompt_ids.size());
  handles_[request->id] = handle;
  if (request->deadline != absl::InfiniteFuture()) deadlines_.insert({request->deadline, handle});
  Flight& entered = *flight;
  CHECK(flights_.emplace(handle, std::move(flight)).second) << "handle used twice";
  metrics_->requests_in_flight.Set(num_in_flight());
  std::optional<ApiError> error = Admit(handle, entered, now);
  if (error) Close(handle, now);
  return error;
}

uint64_t Dispatcher::FindRequest(const std::string& request_id) const {
  const auto it = handles_.find(request_id);
  return it == handles_.end() ? 0 : it->second;
}

bool Dispatcher::End(uint64_t handle, ApiError error, absl::Time now) {
  if (!flights_.contains(handle)) return false;
  Fail(handle, std::move(error), now);
  return true;
}

std::unique_ptr<Dispatcher::Flight> Dispatcher::Close(uint64_t handle, absl::Time now) {
  auto node = flights_.extract(handle);
  CHECK(!node.empty());
  std::unique_ptr<Flight> flight = std::move(node.mapped());
  Retire(handle, *flight);
  Unhold(handle, *flight);
  const Request& request = *flight->request;
  handles_.erase(request.id);
  deadlines_.erase({request.deadline, handle});
  RequestSummary& s = flight->summary;
  s.completion_tokens = flight->answer.num_tokens();
  s.e2e_seconds = Since(request.arrival, now);
  if (s.completion_tokens > 0) {
    s.ttft_seconds = Since(request.arrival, flight->answer.first_token());
  }
  s.mean_itl_seconds = flight->answer.MeanItlSeconds();
  s.retries = flight->relay.num_retries();
  metrics_->requests_in_flight.Set(num_in_flight());
  return flight;
}

void Dispatcher::Fail(uint64_t handle, ApiError error, absl::Time now) {
  Flight& flight = *flights_.at(handle);
  if (flight.relay.group() >= 0) {
    actions_.commands.emplace_back(flight.relay.group(), CancelCommand{.handle = handle});
  }
  std::unique_ptr<Flight> closed = Close(handle, now);
  // It was held, and no group ever took it.
  if (error.reason == "OVERLOADED") {
    metrics_->CountRejected(error.reason);
    actions_.events.emplace_back(handle, ErrorEvent{std::move(error), std::move(closed->summary)});
    return;
  }
  const bool cancelled = error.code == absl::StatusCode::kCancelled;
  if (cancelled) metrics_->cancelled.Increment();
  metrics_->CountFinished(cancelled                                           ? "cancelled"
                          : error.code == absl::StatusCode::kDeadlineExceeded ? "deadline"
                                                                              : "error");
  actions_.events.emplace_back(handle, ErrorEvent{std::move(error), std::move(closed->summary)});
}

void Dispatcher::Complete(uint64_t handle, absl::Time now) {
  std::unique_ptr<Flight> flight = Close(handle, now);
  const RequestSummary& s = flight->summary;
  metrics_->CountFinished(flight->last_finish == FinishReason::kLength ? "length" : "stop");
  if (s.mean_itl_seconds > 0) metrics_->time_per_output_token.Observe(s.mean_itl_seconds);
  if (s.ttft_seconds <= config_.slo_ttft && s.mean_itl_seconds <= config_.slo_itl) {
    metrics_->within_slo.Increment();
  }
  actions_.events.emplace_back(handle, EndEvent{std::move(flight->summary)});
}

// ---- groups ----

void Dispatcher::OnEvent(int group, GroupEvent event, absl::Time now) {
  groups_.OnHeard(group, now);
  if (auto* hello = std::get_if<GroupHello>(&event)) {
    OnHello(group, std::move(*hello), now);
  } else if (auto* progress = std::get_if<RankProgress>(&event)) {
    groups_.OnProgress(group, std::move(*progress), now);
  } else if (auto* reply = std::get_if<CacheSyncReply>(&event)) {
    groups_.OnCache(group, *reply, now);
  } else if (auto* delta = std::get_if<CacheDelta>(&event)) {
    groups_.OnCache(group, *delta, now);
  } else if (auto* digests = std::get_if<BucketDigests>(&event)) {
    groups_.OnCache(group, *digests, now);
  } else if (auto* contents = std::get_if<BucketContents>(&event)) {
    groups_.OnCache(group, *contents, now);
  } else if (auto* load = std::get_if<GroupLoad>(&event)) {
    groups_.OnLoad(group, *load, now);
    PollQueue(now);
  } else if (auto* ack = std::get_if<Ack>(&event)) {
    OnAck(group, *ack, now);
  } else if (auto* refused = std::get_if<Refused>(&event)) {
    OnRefused(group, *refused, now);
  } else if (auto* output = std::get_if<StepOutput>(&event)) {
    for (const TokenRow& row : output->rows) OnRow(group, row, now);
  } else {
    OnDone(group, std::get<Done>(event), now);
  }
  SendGroupCommands();
}

void Dispatcher::SendGroupCommands() {
  for (auto& command : groups_.TakeCommands()) actions_.commands.push_back(std::move(command));
}

void Dispatcher::OnHello(int group, GroupHello hello, absl::Time now) {
  const bool new_epoch = groups_[group].hello.epoch != hello.epoch;
  if (new_epoch) {
    placer_.Forget(group);
    LoseFlights(group, "it restarted", now);
  }
  const bool drained_here = groups_[group].drained_here;
  if (groups_.OnHello(group, std::move(hello), now) && drained_here) {
    actions_.commands.emplace_back(group, DrainCommand{.on = true});
  }
}

Dispatcher::Flight* Dispatcher::Current(int group, uint64_t handle, int attempt) {
  const auto it = flights_.find(handle);
  if (it == flights_.end()) return nullptr;
  return it->second->relay.IsCurrent(group, groups_[group].hello.epoch, attempt) ? it->second.get()
                                                                                 : nullptr;
}

void Dispatcher::OnAck(int group, const Ack& ack, absl::Time now) {
  Flight* flight = Current(group, ack.handle, ack.attempt);
  if (flight == nullptr) return;
  groups_.Confirm(ack.handle, ack.cached_tokens);
  flight->summary.shared_kv_blocks = ack.shared_blocks;
  groups_[group].prompt_tokens += flight->summary.prompt_tokens;
  groups_[group].cached_prompt_tokens += ack.cached_tokens;
  flight->cached_tokens = ack.cached_tokens;
  flight->queue_seconds_there = ack.queue_seconds;
  if (flight->started) return;  // a later attempt: the client knows these already
  flight->summary.cached_prompt_tokens = ack.cached_tokens;
  flight->summary.queue_seconds = Since(flight->request->arrival, now);
  metrics_->prompt_tokens.Increment(flight->summary.prompt_tokens);
  metrics_->cached_prompt_tokens.Increment(ack.cached_tokens);
  SendStart(ack.handle, *flight);
}

// The router knew less than the group does: it decides again, by the state that came along.
void Dispatcher::OnRefused(int group, const Refused& refused, absl::Time now) {
  groups_.OnLoad(group, refused.load, now);
  Flight* flight = Current(group, refused.handle, refused.attempt);
  if (flight == nullptr) return;
  Retire(refused.handle, *flight, /*refused=*/true);
  Continue(refused.handle, *flight, flight->relay.OnSentBack(),
           NoGroup(absl::StrCat(groups_[group].address.name, " sent the request back")), now);
}

void Dispatcher::SendStart(uint64_t handle, Flight& flight) {
  flight.started = true;
  actions_.events.emplace_back(
      handle, StartEvent{flight.summary.group, flight.summary.prompt_tokens,
                         flight.summary.cached_prompt_tokens, std::move(flight.route)});
}

void Dispatcher::OnRow(int group, const TokenRow& row, absl::Time now) {
  Flight* flight = Current(group, row.handle, row.attempt);
  if (flight == nullptr) return;
  const auto verdict = flight->relay.OnRow(group, groups_[group].hello.epoch, row);
  if (verdict == StreamRelay::Verdict::kDrop) return;
  if (verdict == StreamRelay::Verdict::kBroken) {
    actions_.commands.emplace_back(group, CancelCommand{.handle = row.handle});
    Retire(row.handle, *flight);
    const std::string why = absl::StrCat(groups_[group].address.name, " skipped to token ",
                                         row.index, " of choice ", row.choice);
    Continue(row.handle, *flight, flight->relay.OnLost(), GroupLost(why, flight->relay.any_token()),
             now);
    return;
  }
  if (!flight->started) SendStart(row.handle, *flight);
  ++groups_[group].generated_tokens;
  metrics_->generated_tokens.Increment();
  const bool first = flight->answer.num_tokens() == 0;
  Answer::Step step = flight->answer.OnToken(row, now);
  if (first) OnFirstToken(group, *flight, now);
  if (step.gap > absl::ZeroDuration()) {
    metrics_->inter_token_latency.Observe(absl::ToDoubleSeconds(step.gap));
  }
  if (step.delta) actions_.events.emplace_back(row.handle, *std::move(step.delta));
  if (!step.finish) return;
  flight->last_finish = step.finish->reason;
  placer_.OnAnswer(row.index + 1);
  actions_.events.emplace_back(row.handle, *step.finish);
  if (step.stopped_here) {
    flight->relay.FinishChoice(row.choice);
    actions_.commands.emplace_back(group,
                                   CancelCommand{.handle = row.handle, .choice = row.choice});
  }
  if (flight->relay.finished()) Complete(row.handle, now);
}

void Dispatcher::OnFirstToken(int group, const Flight& flight, absl::Time now) {
  metrics_->time_to_first_token.Observe(Since(flight.request->arrival, now));
  const double took = Since(flight.sent, now);
  const double predicted = flight.forecast.wait_seconds + flight.forecast.prefill_seconds;
  if (predicted > 0) metrics_->ttft_over_predicted.Observe(took / predicted);
  if (flight.queue_seconds_there < 0) return;  // not acknowledged
  placer_.OnPrompt(group, flight.summary.prompt_tokens - flight.cached_tokens, flight.cached_tokens,
                   flight.rows_there, took - flight.queue_seconds_there);
}

void Dispatcher::OnDone(int group, const Done& done, absl::Time now) {
  Flight* flight = Current(group, done.handle, done.attempt);
  if (flight == nullptr) return;
  Retire(done.handle, *flight, /*refused=*/done.code != absl::StatusCode::kOk);
  const bool any_token = flight->relay.any_token();
  if (done.reason == "STALE_EPOCH") {
    Continue(done.handle, *flight, flight->relay.OnStale(), GroupLost("it restarted", any_token),
             now);
  } else if (done.code == absl::StatusCode::kUnavailable ||
             done.code == absl::StatusCode::kResourceExhausted) {  // draining, loading, full
    Continue(done.handle, *flight, flight->relay.OnRefused(), FromDone(done, RetryAfter(groups_)),
             now);
  } else if (done.code == absl::StatusCode::kOk) {
    Continue(done.handle, *flight, flight->relay.OnLost(),
             GroupLost("it ended the request before all choices were finished", any_token), now);
  } else {
    // The attempt is over on its group, so there is nothing to cancel there.
    flight->relay.OnLost();
    Fail(done.handle, FromDone(done, RetryAfter(groups_)), now);
  }
}

void Dispatcher::Continue(uint64_t handle, Flight& flight, StreamRelay::Next next, ApiError error,
                          absl::Time now) {
  if (next == StreamRelay::Next::kRetry) {
    flight.lost = error;
    if (!Admit(handle, flight, now)) {
      if (error.reason == "GROUP_LOST") metrics_->resumes.Increment();
      return;
    }
  }
  Fail(handle, std::move(error), now);
}

void Dispatcher::LoseFlights(int group, const std::string& why, absl::Time now) {
  std::vector<uint64_t> lost;
  for (const auto& [handle, flight] : flights_) {
    if (flight->relay.group() == group) lost.push_back(handle);
  }
  std::sort(lost.begin(), lost.end());  // oldest first
  for (uint64_t handle : lost) {
    Flight& flight = *flights_.at(handle);
    Retire(handle, flight);
    const auto next = flight.relay.OnLost();
    Continue(
        handle, flight, next,
        GroupLost(absl::StrCat(groups_[group].address.name, ": ", why), flight.relay.any_token()),
        now);
  }
}

void Dispatcher::OnDown(int group, const std::string& why, absl::Time now) {
  groups_.OnDown(group, why, now);
  LoseFlights(group, why, now);
}

void Dispatcher::SetGroupDraining(int group, bool on) {
  groups_[group].drained_here = on;
  actions_.commands.emplace_back(group, DrainCommand{.on = on});
}

void Dispatcher::FailHeld(absl::Time now) {
  if (queue_.size() == 0) return;
  std::vector<uint64_t> held;
  for (const auto& [handle, flight] : flights_) {
    if (flight->relay.group() < 0) held.push_back(handle);
  }
  std::sort(held.begin(), held.end());
  for (uint64_t handle : held) {
    std::optional<ApiError> lost = flights_.at(handle)->lost;
    Fail(handle, lost ? *std::move(lost) : NoGroup("no group accepts requests any more"), now);
  }
}

void Dispatcher::Tick(absl::Time now) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const uint64_t handle = deadlines_.begin()->second;
    const Flight& flight = *flights_.at(handle);
    const char* stage = flight.answer.num_tokens() > 0 ? "decode"
                        : flight.started               ? "prefill"
                                                       : "queue";
    Fail(handle, DeadlineExceeded(stage), now);
  }
  groups_.Tick(now);
  SendGroupCommands();
  for (int g = 0; g < groups_.size(); ++g) {
    if (!groups_.IsSilent(g, now)) continue;
    const std::string why =
        absl::StrCat("silent for ", absl::FormatDuration(now - groups_[g].last_heard));
    OnDown(g, why, now);
    actions_.resets.push_back(g);
  }
  if (groups_.num_accepting() == 0) FailHeld(now);
  PollQueue(now);
  metrics_->ObserveStreams(groups_, now);
  metrics_->groups_ready.Set(groups_.num_ready());
  metrics_->index_blocks.Set(static_cast<double>(groups_.index().size()));
  metrics_->index_bytes.Set(static_cast<double>(groups_.index().bytes()));
  for (int g = 0; g < groups_.size(); ++g) {
    metrics_->SetGroupUp(groups_[g].address.name, groups_[g].phase == GroupState::Phase::kReady);
  }
}

}  // namespace bough::router
