#include "bench/router_replay_group.h"

#include <algorithm>
#include <utility>

#include "common/block_hash.h"
#include "common/check.h"

namespace bough {
namespace {

// Each step would make the fit most of the replay's time.
constexpr int kFitAll = 64, kFitEvery = 8;

int BlocksFor(int tokens) { return (tokens + kTraceBlockTokens - 1) / kTraceBlockTokens; }

}  // namespace

ReplayGroup::ReplayGroup(const ReplayGroupModel& model, const ReplayTrace& trace)
    : model_(model),
      trace_(trace),
      cache_(trace.num_ids, model.kv_blocks),
      decoding_(trace.num_ids) {}

std::vector<ReplayEvent> ReplayGroup::TakeEvents() { return std::exchange(events_, {}); }

void ReplayGroup::Submit(int request, double t) {
  const ReplayRequest& r = trace_.requests[request];
  const int cached = std::min(Match(r.blocks) * kTraceBlockTokens, r.input_tokens - 1);
  queue_.push_back({.request = request, .expected_uncached = r.input_tokens - cached});
  if (in_step_) return;
  step_end_ = t;
  StartStep();
}

ReplayLoad ReplayGroup::Load(double t) const {
  ReplayLoad load;
  int64_t queued = 0;
  for (const Prefill& p : queue_) {
    queued += p.started ? trace_.requests[p.request].input_tokens - p.done : p.expected_uncached;
    load.waiting += !p.started;
    load.rows += trace_.requests[p.request].num_choices;
  }
  load.running = static_cast<int>(rows_.size() + queue_.size()) - load.waiting;
  load.rows += num_rows_;
  load.queued_tokens = static_cast<double>(queued);
  const int64_t steps = (queued + model_.chunk_tokens - 1) / model_.chunk_tokens;
  load.prefill_seconds_per_token = step_time_.seconds_per_token();
  load.drain_seconds =
      queued * load.prefill_seconds_per_token + steps * step_time_.seconds_per_step();
  load.active_unique_blocks =
      (num_decoding_blocks_ * kTraceBlockTokens + answer_tokens_) / kBlockSize;
  load.decode_seconds_per_block = step_time_.seconds_per_block();
  load.free_blocks = cache_.num_free();
  load.used_blocks = cache_.num_used();
  router::BusyShare busy = busy_;
  if (!in_step_) busy.Add(false, t - busy_at_);
  load.busy_share = busy.value();
  return load;
}

void ReplayGroup::AdvanceTo(double t) {
  while (in_step_ && step_end_ <= t) {
    EndStep();
    StartStep();
  }
}

bool ReplayGroup::Begin(Prefill* p) {
  const ReplayRequest& r = trace_.requests[p->request];
  const int num_blocks = static_cast<int>(r.blocks.size());
  const int matched = Match(r.blocks);
  for (int i = 0; i < matched; ++i) cache_.Pin(r.blocks[i]);
  const int answers = r.num_choices * BlocksFor(r.output_tokens);
  if (!cache_.Reserve(num_blocks - matched + answers)) {
    cache_.Unpin(std::span(r.blocks).first(matched));
    CHECK(num_rows_ > 0 || p != &queue_.front()) << "a request exceeds the group's KV";
    return false;
  }
  p->started = true;
  p->matched_blocks = p->stored_blocks = matched;
  p->private_blocks = answers;
  p->cached = p->done = std::min(matched * kTraceBlockTokens, r.input_tokens - 1);
  p->begin = step_end_;
  num_hit_blocks_ += matched;
  return true;
}

void ReplayGroup::StartStep() {
  chunks_.clear();
  int budget = std::max(1, model_.chunk_tokens - num_rows_);
  double pairs = 0;
  step_tokens_ = num_rows_;
  for (Prefill& p : queue_) {
    if (budget == 0 || (!p.started && !Begin(&p))) break;
    const int tokens = std::min(budget, trace_.requests[p.request].input_tokens - p.done);
    pairs += tokens * (p.done + tokens / 2.0);
    chunks_.push_back({p.done, tokens});
    budget -= tokens;
    step_tokens_ += tokens;
  }
  in_step_ = step_tokens_ > 0;
  if (!in_step_) return;
  step_begin_ = step_end_;
  step_kv_tokens_ = num_decoding_blocks_ * kTraceBlockTokens + answer_tokens_;
  step_end_ = step_begin_ +
              std::max(model_.weights_seconds,
                       step_tokens_ * model_.token_seconds + pairs * model_.pair_seconds) +
              step_kv_tokens_ * model_.kv_token_seconds;
}

void ReplayGroup::EndStep() {
  ++step_;
  const double seconds = step_end_ - step_begin_;
  if (step_ <= kFitAll || step_ % kFitEvery == 0)
    step_time_.Add(step_tokens_, step_kv_tokens_ / kBlockSize, seconds);
  busy_.Add(false, step_begin_ - busy_at_);
  busy_.Add(!chunks_.empty(), seconds);
  busy_at_ = step_end_;

  answer_tokens_ += num_rows_;
  const int rows = num_rows_;
  while (!rows_.empty() && rows_.top().last_step <= step_) {
    EndRow(rows_.top());
    rows_.pop();
  }
  int num_finished = 0;
  for (size_t i = 0; i < chunks_.size(); ++i) {
    Prefill& p = queue_[i];
    const ReplayRequest& r = trace_.requests[p.request];
    p.done += chunks_[i].tokens;
    p.rows_sum += rows;
    ++p.num_steps;
    computed_tokens_ += chunks_[i].tokens;
    const bool finished = p.done == r.input_tokens;
    const int full = finished ? static_cast<int>(r.blocks.size()) : p.done / kTraceBlockTokens;
    for (; p.stored_blocks < full; ++p.stored_blocks) cache_.Store(r.blocks[p.stored_blocks]);
    num_finished += finished;
    if (finished) EndPrefill(p);
  }
  queue_.erase(queue_.begin(), queue_.begin() + num_finished);
}

void ReplayGroup::EndPrefill(const Prefill& p) {
  const ReplayRequest& r = trace_.requests[p.request];
  events_.push_back({.kind = ReplayEvent::Kind::kFirstToken,
                     .request = p.request,
                     .at = step_end_,
                     .uncached = r.input_tokens - p.cached,
                     .cached = p.cached,
                     .rows = p.rows_sum / p.num_steps,
                     .prefill_seconds = step_end_ - p.begin});
  const Row row = {step_ + r.output_tokens - 1, p.request, p.private_blocks};
  CountDecoding(r.blocks, 1);
  num_rows_ += r.num_choices;
  answer_tokens_ += r.num_choices;
  if (r.output_tokens > 1) {
    rows_.push(row);
  } else {
    EndRow(row);
  }
}

void ReplayGroup::EndRow(const Row& row) {
  const ReplayRequest& r = trace_.requests[row.request];
  events_.push_back({.kind = ReplayEvent::Kind::kDone, .request = row.request, .at = step_end_});
  CountDecoding(r.blocks, -1);
  num_rows_ -= r.num_choices;
  answer_tokens_ -= static_cast<int64_t>(r.num_choices) * r.output_tokens;
  cache_.Unpin(r.blocks);
  cache_.Release(row.private_blocks);
}

void ReplayGroup::CountDecoding(std::span<const int> chain, int change) {
  for (int id : chain) {
    num_decoding_blocks_ -= decoding_[id] > 0;
    decoding_[id] += change;
    num_decoding_blocks_ += decoding_[id] > 0;
  }
}

}  // namespace bough
