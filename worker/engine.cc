#include "worker/engine.h"

#include <algorithm>
#include <deque>
#include <utility>
#include <variant>

#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "common/check.h"
#include "worker/batch_builder.h"
#include "worker/live_requests.h"
#include "worker/scheduler.h"
#include "worker/step_time.h"

namespace bough {
namespace {

struct SubmitOp {
  Request request;
  absl::Time submitted;
};
struct CancelOp {
  RequestKey key;
  int32_t choice;
};
struct CancelLinkOp {
  uint64_t link;
};
struct DrainOp {
  bool draining;
};
using Op = std::variant<SubmitOp, CancelOp, CancelLinkOp, DrainOp>;

// A batch that is launched: all that its result is handed out by. The sequences may end meanwhile.
struct LaunchedStep {
  std::vector<SequenceId> sampled;  // as its Batch::samples
  int32_t max_top = 0;
  absl::Time launched;
  int num_prefill_tokens = 0, num_decode_rows = 0, num_shared_rows = 0;
  int64_t num_decode_blocks = 0;
};

Finish FinishOf(const Sequence& seq, const ModelLimits& limits) {
  const SamplingParams& p = seq.request->request.sampling;
  const int32_t token = seq.output.back();
  if (!p.ignore_eos && token == limits.eos_token_id) return Finish::kEos;
  const auto& stops = p.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), token) != stops.end()) return Finish::kStopToken;
  const bool is_last = static_cast<int>(seq.output.size()) >= p.max_tokens;
  return is_last ? Finish::kLength : Finish::kNone;
}

}  // namespace

struct Engine::Impl {
  Impl(const EngineConfig& c, StepExecutor* e)
      : config(c),
        executor(e),
        max_in_flight(e->max_steps_in_flight()),
        blocks(c.num_blocks),
        scheduler({c.max_num_seqs, c.max_num_batched_tokens}, &blocks),
        requests(&config, &scheduler) {
    // With more, a pending token could be older than the step before, and Batch::tokens had no name
    // for it.
    CHECK(max_in_flight == 1 || max_in_flight == 2) << max_in_flight;
  }
  // No result is left behind: the executor may go on, or be told to shut down.
  ~Impl() {
    for (; !in_flight.empty(); in_flight.pop_front()) executor->Wait();
  }

  void Push(Op op) {
    absl::MutexLock lock(&mutex);
    inbox.push_back(std::move(op));
  }
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) { return has_live || !inbox.empty(); }

  void Handle(SubmitOp op, absl::Time now) {
    requests.Submit(std::move(op.request), op.submitted, now);
  }
  void Handle(const CancelOp& op, absl::Time now) { requests.Cancel(op.key, op.choice, now); }
  void Handle(const CancelLinkOp& op, absl::Time now) { requests.CancelLink(op.link, now); }
  void Handle(const DrainOp& op, absl::Time) { requests.set_draining(op.draining); }
  bool Launch(absl::Time now);  // false: nothing can run now
  void Acknowledge(const Plan& plan, absl::Time now);
  void HandOutOldest();
  Finish AddToken(Sequence* seq, size_t i, int32_t max_top, const StepResult& result,
                  absl::Time now);
  LoadReport Load() const;

  const EngineConfig config;
  StepExecutor* const executor;
  const size_t max_in_flight;

  absl::Mutex mutex;
  std::vector<Op> inbox ABSL_GUARDED_BY(mutex);
  bool has_live ABSL_GUARDED_BY(mutex) = false;

  // Engine thread.
  BlockManager blocks;
  Scheduler scheduler;
  StepTimeModel step_time;
  LiveRequests requests;
  int64_t num_steps = 0;
  BuiltBatch built;
  std::deque<LaunchedStep> in_flight;  // oldest first
  absl::Time last_result = absl::InfinitePast();
  StepEvents events;  // of the Step in progress
};

void Engine::Impl::Acknowledge(const Plan& plan, absl::Time now) {
  for (const Chunk& chunk : plan.prefills) {
    LiveRequest* request = chunk.seq->request;
    if (request->first_scheduled != absl::InfiniteFuture()) continue;
    request->first_scheduled = std::max(now, request->submitted);
    const bool shares = request->sequences.size() > 1;
    events.acks.push_back({request->request.key, request->request.attempt, request->cached_tokens,
                           shares ? static_cast<int32_t>(request->prompt_hashes.size()) : 0,
                           request->first_scheduled - request->submitted});
  }
}

bool Engine::Impl::Launch(absl::Time now) {
  const Plan plan = scheduler.Next();
  if (plan.empty()) return false;
  Acknowledge(plan, now);
  BuildBatch(plan, config.limits, config.forest_costs, num_steps++, &built);
  const Batch& batch = built.batch;
  LaunchedStep step{{},
                    batch.max_top,
                    config.clock(),
                    built.num_prefill_tokens,
                    batch.num_decode,
                    built.num_shared_rows,
                    built.num_decode_blocks};
  executor->Launch(batch);
  scheduler.Launched(plan);
  for (Sequence* seq : built.sampled) {
    seq->sampled_row = static_cast<int32_t>(step.sampled.size());
    step.sampled.push_back({seq->request->arrival, seq->ordinal});
  }
  in_flight.push_back(std::move(step));
  return true;
}

void Engine::Impl::HandOutOldest() {
  const StepResult result = executor->Wait();
  const absl::Time now = config.clock();
  const LaunchedStep step = std::move(in_flight.front());
  in_flight.pop_front();
  CHECK_EQ(result.tokens.size(), step.sampled.size());

  events.prefill_tokens = step.num_prefill_tokens;
  events.decode_rows = step.num_decode_rows;
  events.shared_prefix_rows = step.num_shared_rows;
  events.step_time = now - std::max(step.launched, last_result);
  step_time.Add(step.num_prefill_tokens + step.num_decode_rows, step.num_decode_blocks,
                absl::ToDoubleSeconds(events.step_time));
  last_result = now;

  for (size_t i = 0; i < step.sampled.size(); ++i) {
    Sequence* seq = requests.Find(step.sampled[i]);
    if (seq == nullptr) continue;  // it ended after the launch: nobody wants the token
    if (AddToken(seq, i, step.max_top, result, now) == Finish::kNone) continue;
    requests.FinishChoice(seq, now);
  }
}

Finish Engine::Impl::AddToken(Sequence* seq, size_t i, int32_t max_top, const StepResult& result,
                              absl::Time now) {
  LiveRequest* request = seq->request;
  const int32_t token = result.tokens[i];
  CHECK(token >= 0 && token < config.limits.vocab_size) << "sampled token " << token;
  TokenEvent event;
  event.key = request->request.key;
  event.attempt = request->request.attempt;
  event.choice = seq->choice;
  event.index = static_cast<int32_t>(seq->output.size());
  event.token = token;
  if (const int num_top = request->request.sampling.logprobs; num_top >= 0) {
    event.logprob = result.logprobs[i];
    const size_t at = i * max_top;
    event.top_ids.assign(result.top_ids.begin() + at, result.top_ids.begin() + at + num_top);
    event.top_logprobs.assign(result.top_logprobs.begin() + at,
                              result.top_logprobs.begin() + at + num_top);
  }
  scheduler.TokenArrived(seq, token);
  ++request->generated_tokens;
  request->first_token = std::min(request->first_token, now);
  event.finish = FinishOf(*seq, config.limits);
  events.tokens.push_back(std::move(event));
  return events.tokens.back().finish;
}

LoadReport Engine::Impl::Load() const {
  LoadReport load;
  load.waiting = scheduler.num_waiting_requests();
  load.running = static_cast<int>(requests.all().size()) - load.waiting;
  load.free_blocks = blocks.num_free();
  load.cached_blocks = blocks.num_cached();
  load.used_blocks = blocks.num_used();
  load.total_blocks = blocks.num_total();
  load.active_unique_blocks = blocks.num_used();
  load.prefill_seconds_per_token = step_time.seconds_per_token();
  load.decode_step_seconds = step_time.seconds_per_step();
  load.decode_seconds_per_block = step_time.seconds_per_block();
  const int64_t queued = scheduler.QueuedTokens();
  const int64_t steps =
      (queued + config.max_num_batched_tokens - 1) / config.max_num_batched_tokens;
  load.drain_seconds = queued * load.prefill_seconds_per_token + steps * load.decode_step_seconds;
  load.preemptions = scheduler.num_preemptions();
  load.draining = requests.draining();
  return load;
}

Engine::Engine(const EngineConfig& config, StepExecutor* executor)
    : impl_(std::make_unique<Impl>(config, executor)) {}
Engine::~Engine() = default;

void Engine::Submit(Request request) {
  impl_->Push(SubmitOp{std::move(request), impl_->config.clock()});
}
void Engine::Cancel(const RequestKey& key, int32_t choice) { impl_->Push(CancelOp{key, choice}); }
void Engine::CancelLink(uint64_t link) { impl_->Push(CancelLinkOp{link}); }
void Engine::SetDraining(bool draining) { impl_->Push(DrainOp{draining}); }

bool Engine::WaitForWork(absl::Duration timeout) {
  absl::MutexLock lock(&impl_->mutex);
  return impl_->mutex.AwaitWithTimeout(absl::Condition(impl_.get(), &Impl::HasWork), timeout);
}

std::optional<StepEvents> Engine::Step(absl::Time now) {
  std::vector<Op> ops;
  {
    absl::MutexLock lock(&impl_->mutex);
    ops.swap(impl_->inbox);
  }
  const bool was_idle = ops.empty() && impl_->requests.all().empty() && impl_->in_flight.empty();
  for (Op& op : ops) {
    std::visit([&](auto& o) { impl_->Handle(std::move(o), now); }, op);
  }
  impl_->requests.ExpireDeadlines(now);
  const bool launched = impl_->Launch(now);
  if (!impl_->in_flight.empty()) {
    if (!launched || impl_->in_flight.size() == impl_->max_in_flight) impl_->HandOutOldest();
  } else {
    CHECK(impl_->requests.all().empty()) << "requests and nothing to do";
  }
  {
    absl::MutexLock lock(&impl_->mutex);
    impl_->has_live = !impl_->requests.all().empty() || !impl_->in_flight.empty();
  }
  if (was_idle) return std::nullopt;
  StepEvents events = std::exchange(impl_->events, {});
  events.dones = impl_->requests.TakeDones();
  events.cache = impl_->blocks.TakeEvents();
  if (!impl_->config.enable_prefix_caching) events.cache = {};
  events.load = impl_->Load();
  return events;
}

LoadReport Engine::Load() const { return impl_->Load(); }

void Engine::CheckIntegrity() const {
  absl::flat_hash_map<const Sequence*, int> num_pending;
  for (const LaunchedStep& step : impl_->in_flight) {
    for (const SequenceId& id : step.sampled) {
      if (const Sequence* seq = impl_->requests.Find(id)) ++num_pending[seq];
    }
  }
  std::vector<int> refs(impl_->config.num_blocks, 0);
  for (const auto& [arrival, request] : impl_->requests.all()) {
    for (const Sequence& seq : request->sequences) {
      CHECK_EQ(seq.block_table.empty(), !seq.running());
      if (seq.state != SequenceState::kFinished && seq.num_pending > 0) {
        CHECK_EQ(seq.num_pending, num_pending[&seq]);
        num_pending.erase(&seq);
      }
      if (seq.state == SequenceState::kEnding) CHECK_GT(seq.num_pending, 0);
      for (int32_t block : seq.block_table) ++refs[block];
      if (seq.copy_from != kNoBlock) ++refs[seq.copy_from];
    }
  }
  CHECK(num_pending.empty()) << "a token in flight that no sequence awaits";
  impl_->blocks.CheckIntegrity(refs);
}

}  // namespace bough
