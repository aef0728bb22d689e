#include "worker/engine.h"

#include <algorithm>
#include <utility>
#include <variant>

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

Finish FinishOf(const Sequence& seq, const ModelLimits& limits) {
  const SamplingParams& p = seq.request->request.sampling;
  const int32_t token = seq.output.back();
  if (!p.ignore_eos && token == limits.eos_token_id) return Finish::kEos;
  const auto& stops = p.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), token) != stops.end()) return Finish::kStopToken;
  const bool is_full = static_cast<int64_t>(seq.output.size()) >= p.max_tokens ||
                       seq.num_tokens() >= limits.max_model_len;
  return is_full ? Finish::kLength : Finish::kNone;
}

}  // namespace

struct Engine::Impl {
  Impl(const EngineConfig& c, StepExecutor* e)
      : config(c),
        executor(e),
        blocks(c.num_blocks),
        scheduler({c.max_num_seqs, c.max_num_batched_tokens}, &blocks),
        requests(&config, &scheduler) {}

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
  void Run(const Plan& plan, absl::Time now);
  void Acknowledge(const Plan& plan, absl::Time now);
  void HandOut(const StepResult& result, absl::Time now);
  Finish AddToken(const SampledRow& row, size_t i, const StepResult& result, absl::Time now);
  LoadReport Load() const;

  const EngineConfig config;
  StepExecutor* const executor;

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
  StepEvents events;  // of the step in progress
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

void Engine::Impl::Run(const Plan& plan, absl::Time now) {
  Acknowledge(plan, now);
  BuildBatch(plan, config.limits, num_steps++, &built);
  const absl::Time begin = config.clock();
  const StepResult result = executor->Execute(built.batch);
  const absl::Time end = config.clock();
  CHECK_EQ(result.tokens.size(), built.sampled.size());

  events.prefill_tokens = built.num_prefill_tokens;
  events.decode_rows = built.batch.num_decode;
  events.shared_prefix_rows = built.num_shared_rows;
  events.step_time = end - begin;
  step_time.Add(built.batch.num_tokens(), built.num_decode_blocks,
                absl::ToDoubleSeconds(end - begin));

  for (Sequence* seq : plan.decodes) scheduler.Computed(seq, 1);
  for (const Chunk& chunk : plan.prefills) scheduler.Computed(chunk.seq, chunk.num_tokens);
  HandOut(result, end);
}

void Engine::Impl::HandOut(const StepResult& result, absl::Time now) {
  std::vector<Sequence*> finished;
  for (size_t i = 0; i < built.sampled.size(); ++i) {
    const SampledRow& row = built.sampled[i];
    if (AddToken(row, i, result, now) != Finish::kNone) {
      finished.push_back(row.seq);
    } else if (row.leader != nullptr) {
      scheduler.StartFork(*row.leader, row.seq);
    }
  }
  // After all forks: a leader that is done with its first token still gave its blocks to them.
  for (Sequence* seq : finished) requests.FinishChoice(seq, now);
}

Finish Engine::Impl::AddToken(const SampledRow& row, size_t i, const StepResult& result,
                              absl::Time now) {
  LiveRequest* request = row.seq->request;
  const int32_t token = result.tokens[i];
  CHECK(token >= 0 && token < config.limits.vocab_size) << "sampled token " << token;
  TokenEvent event;
  event.key = request->request.key;
  event.attempt = request->request.attempt;
  event.choice = row.seq->choice;
  event.index = static_cast<int32_t>(row.seq->output.size());
  event.token = token;
  if (const int num_top = request->request.sampling.logprobs; num_top >= 0) {
    event.logprob = result.logprobs[i];
    const size_t at = i * built.batch.max_top;
    event.top_ids.assign(result.top_ids.begin() + at, result.top_ids.begin() + at + num_top);
    event.top_logprobs.assign(result.top_logprobs.begin() + at,
                              result.top_logprobs.begin() + at + num_top);
  }
  row.seq->Append(token);
  ++request->generated_tokens;
  request->first_token = std::min(request->first_token, now);
  event.finish = FinishOf(*row.seq, config.limits);
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
  const bool was_idle = ops.empty() && impl_->requests.all().empty();
  for (Op& op : ops) {
    std::visit([&](auto& o) { impl_->Handle(std::move(o), now); }, op);
  }
  impl_->requests.ExpireDeadlines(now);
  if (!impl_->requests.all().empty()) {
    const Plan plan = impl_->scheduler.Next();
    CHECK(!plan.empty()) << impl_->requests.all().size() << " requests and nothing to do";
    impl_->Run(plan, now);
  }
  {
    absl::MutexLock lock(&impl_->mutex);
    impl_->has_live = !impl_->requests.all().empty();
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
  std::vector<int> refs(impl_->config.num_blocks, 0);
  for (const auto& [arrival, request] : impl_->requests.all()) {
    for (const Sequence& seq : request->sequences) {
      CHECK_EQ(seq.block_table.empty(), !seq.running());
      for (int32_t block : seq.block_table) ++refs[block];
      if (seq.copy_from != kNoBlock) ++refs[seq.copy_from];
    }
  }
  impl_->blocks.CheckIntegrity(refs);
}

}  // namespace bough
