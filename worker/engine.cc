#include "worker/engine.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "common/check.h"
#include "worker/batch_builder.h"
#include "worker/request_check.h"
#include "worker/scheduler.h"
#include "worker/sequence_blocks.h"
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

// How long each stage took, for a request that ends at `end`.
void FillTimings(const LiveRequest& live, absl::Time end, DoneEvent* done) {
  const absl::Time scheduled = std::min(live.first_scheduled, end);
  const absl::Time first_token = std::min(live.first_token, end);
  done->queue_time = scheduled - live.submitted;
  done->prefill_time = first_token - scheduled;
  done->decode_time = end - first_token;
}

const char* StageOf(const LiveRequest& live) {
  if (!live.was_admitted) return "queue";
  return live.first_token == absl::InfiniteFuture() ? "prefill" : "decode";
}

}  // namespace

struct Engine::Impl {
  Impl(const EngineConfig& c, StepExecutor* e)
      : config(c),
        executor(e),
        blocks(c.num_blocks),
        scheduler({c.max_num_seqs, c.max_num_batched_tokens}, &blocks) {}

  void Push(Op op) {
    absl::MutexLock lock(&mutex);
    inbox.push_back(std::move(op));
  }
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) { return has_live || !inbox.empty(); }

  void Handle(SubmitOp op, absl::Time now);
  void Handle(const CancelOp& op, absl::Time now);
  void Handle(const CancelLinkOp& op, absl::Time now);
  void Handle(const DrainOp& op, absl::Time) { draining = op.draining; }
  void Refuse(const SubmitOp& op, absl::Time now, absl::Status status, std::string reason,
              std::vector<FieldViolation> violations = {});
  void ExpireDeadlines(absl::Time now);
  void Run(const Plan& plan, absl::Time now);
  void Acknowledge(const Plan& plan, absl::Time now);
  void HandOut(const StepResult& result, absl::Time now);
  Finish AddToken(const SampledRow& row, size_t i, const StepResult& result, absl::Time now);
  void FinishChoice(Sequence* seq, absl::Time now);
  void End(LiveRequest* live, absl::Time now, absl::Status status, std::string reason,
           std::string stage = "");
  BlockHash RootOf(const Request& request) const;
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
  bool draining = false;
  uint64_t num_arrivals = 0;
  int64_t num_steps = 0;
  absl::btree_map<uint64_t, std::unique_ptr<LiveRequest>> live;  // by arrival
  absl::flat_hash_map<RequestKey, LiveRequest*> by_key;
  BuiltBatch built;
  StepEvents events;  // of the step in progress
};

BlockHash Engine::Impl::RootOf(const Request& request) const {
  if (config.enable_prefix_caching) return RootHash(config.model_key, request.cache_salt);
  return RootHash(config.model_key, absl::StrCat("request ", num_arrivals));
}

void Engine::Impl::Handle(SubmitOp op, absl::Time now) {
  if (draining) {
    return Refuse(op, now, absl::UnavailableError("the group is draining"), "DRAINING");
  }
  std::vector<FieldViolation> bad = CheckRequest(op.request, config.limits, config.num_blocks);
  if (by_key.contains(op.request.key)) {
    bad.push_back({"handle", absl::StrFormat("%d is in use", op.request.key.handle)});
  }
  if (!bad.empty()) {
    auto status = absl::InvalidArgumentError(JoinViolations(bad));
    return Refuse(op, now, std::move(status), "INVALID", std::move(bad));
  }
  if (scheduler.num_waiting_requests() >= config.max_waiting) {
    auto status = absl::ResourceExhaustedError(absl::StrFormat(
        "%d requests wait, the limit is %d", scheduler.num_waiting_requests(), config.max_waiting));
    return Refuse(op, now, std::move(status), "QUEUE_FULL");
  }
  const BlockHash root = RootOf(op.request);
  const uint64_t arrival = num_arrivals++;
  auto request = std::make_unique<LiveRequest>(std::move(op.request), root, arrival, op.submitted);
  by_key[request->request.key] = request.get();
  scheduler.Add(request.get());
  live[arrival] = std::move(request);
}

void Engine::Impl::Refuse(const SubmitOp& op, absl::Time now, absl::Status status,
                          std::string reason, std::vector<FieldViolation> violations) {
  DoneEvent done;
  done.key = op.request.key;
  done.attempt = op.request.attempt;
  done.request_id = op.request.request_id;
  done.traceparent = op.request.traceparent;
  done.status = std::move(status);
  done.reason = std::move(reason);
  done.violations = std::move(violations);
  done.prompt_tokens = static_cast<int32_t>(op.request.prompt_ids.size());
  done.queue_time = now - op.submitted;
  events.dones.push_back(std::move(done));
}

void Engine::Impl::Handle(const CancelOp& op, absl::Time now) {
  const auto it = by_key.find(op.key);
  if (it == by_key.end()) return;
  LiveRequest* request = it->second;
  if (op.choice < 0) return End(request, now, absl::CancelledError("cancelled"), "CANCELLED");
  for (Sequence& seq : request->sequences) {
    if (seq.choice != op.choice || seq.state == SequenceState::kFinished) continue;
    return FinishChoice(&seq, now);
  }
}

void Engine::Impl::Handle(const CancelLinkOp& op, absl::Time now) {
  std::vector<LiveRequest*> gone;
  for (const auto& [arrival, request] : live) {
    if (request->request.key.link == op.link) gone.push_back(request.get());
  }
  for (LiveRequest* request : gone) {
    End(request, now, absl::CancelledError("the router's stream is gone"), "CANCELLED");
  }
}

void Engine::Impl::ExpireDeadlines(absl::Time now) {
  std::vector<LiveRequest*> expired;
  for (const auto& [arrival, request] : live) {
    if (request->request.deadline <= now) expired.push_back(request.get());
  }
  for (LiveRequest* request : expired) {
    const char* stage = StageOf(*request);
    End(request, now, absl::DeadlineExceededError(absl::StrCat("deadline passed in ", stage)),
        "DEADLINE", stage);
  }
}

void Engine::Impl::End(LiveRequest* request, absl::Time now, absl::Status status,
                       std::string reason, std::string stage) {
  for (auto seq = request->sequences.rbegin(); seq != request->sequences.rend(); ++seq) {
    if (seq->state != SequenceState::kFinished) scheduler.Finish(&*seq);
  }
  DoneEvent done;
  done.key = request->request.key;
  done.attempt = request->request.attempt;
  done.request_id = request->request.request_id;
  done.traceparent = request->request.traceparent;
  done.status = std::move(status);
  done.reason = std::move(reason);
  done.stage = std::move(stage);
  done.prompt_tokens = static_cast<int32_t>(request->request.prompt_ids.size());
  done.cached_tokens = request->cached_tokens;
  done.generated_tokens = request->generated_tokens;
  FillTimings(*request, now, &done);
  events.dones.push_back(std::move(done));
  by_key.erase(request->request.key);
  live.erase(request->arrival);
}

void Engine::Impl::FinishChoice(Sequence* seq, absl::Time now) {
  scheduler.Finish(seq);
  if (--seq->request->num_unfinished == 0) End(seq->request, now, absl::OkStatus(), "");
}

void Engine::Impl::Acknowledge(const Plan& plan, absl::Time now) {
  for (const Chunk& chunk : plan.prefills) {
    LiveRequest* request = chunk.seq->request;
    if (request->first_scheduled != absl::InfiniteFuture()) continue;
    request->first_scheduled = now;
    const bool shares = request->sequences.size() > 1;
    events.acks.push_back({request->request.key, request->request.attempt, request->cached_tokens,
                           shares ? static_cast<int32_t>(request->prompt_hashes.size()) : 0,
                           now - request->submitted});
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
  for (Sequence* seq : finished) FinishChoice(seq, now);
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
  load.running = static_cast<int>(live.size()) - load.waiting;
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
  load.draining = draining;
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
  const bool was_idle = ops.empty() && impl_->live.empty();
  for (Op& op : ops) {
    std::visit([&](auto& o) { impl_->Handle(std::move(o), now); }, op);
  }
  impl_->ExpireDeadlines(now);
  if (!impl_->live.empty()) {
    const Plan plan = impl_->scheduler.Next();
    CHECK(!plan.empty()) << impl_->live.size() << " requests and nothing to do";
    impl_->Run(plan, now);
  }
  {
    absl::MutexLock lock(&impl_->mutex);
    impl_->has_live = !impl_->live.empty();
  }
  if (was_idle) return std::nullopt;
  StepEvents events = std::exchange(impl_->events, {});
  events.cache = impl_->blocks.TakeEvents();
  if (!impl_->config.enable_prefix_caching) events.cache = {};
  events.load = impl_->Load();
  return events;
}

LoadReport Engine::Load() const { return impl_->Load(); }

void Engine::CheckIntegrity() const {
  std::vector<int> refs(impl_->config.num_blocks, 0);
  for (const auto& [arrival, request] : impl_->live) {
    for (const Sequence& seq : request->sequences) {
      CHECK_EQ(seq.block_table.empty(), !seq.running());
      for (int32_t block : seq.block_table) ++refs[block];
      if (seq.copy_from != kNoBlock) ++refs[seq.copy_from];
    }
  }
  impl_->blocks.CheckIntegrity(refs);
}

}  // namespace bough
