#include "worker/scheduler.h"

#include <algorithm>

#include "common/check.h"
#include "worker/sequence_blocks.h"

namespace bough {
namespace {

// Waiting requests that are passed over in one step because their prefix is being computed just
// now.
constexpr int kMaxDeferred = 8;

// The sequence that the request would start next; nullptr while all that wait will be forked.
Sequence* NextWaiting(LiveRequest* request) {
  if (!request->stalled.empty()) return &request->sequences[*request->stalled.begin()];
  if (request->fresh.empty() || request->leader != nullptr) return nullptr;
  return &request->sequences[*request->fresh.begin()];
}

bool HasWaiting(const LiveRequest& request) {
  return !request.fresh.empty() || !request.stalled.empty();
}

}  // namespace

Scheduler::Scheduler(const SchedulerConfig& config, BlockManager* blocks)
    : max_rows_(std::min(config.max_num_seqs, config.max_num_batched_tokens)),
      max_tokens_(config.max_num_batched_tokens),
      blocks_(blocks) {
  CHECK_GT(max_rows_, 0);
}

void Scheduler::Add(LiveRequest* request) {
  for (Sequence& seq : request->sequences) Wait(&seq);
  ++num_unstarted_;
}

Plan Scheduler::Next() {
  Plan plan;
  CHECK_EQ(num_forks_, 0) << "the last plan was not carried out";
  const int64_t preemptions_before = num_preemptions_;
  PlanDecodes(&plan);
  int budget = max_tokens_ - static_cast<int>(plan.decodes.size());
  for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
    if (running_[i]->state == SequenceState::kPrefill) {
      budget -= PlanChunk(running_[i], budget, &plan);
    }
  }
  if (num_preemptions_ == preemptions_before) PlanWaiting(budget, &plan);
  return plan;
}

void Scheduler::PlanDecodes(Plan* plan) {
  // Preempt takes from the back only, so what is planned stays running.
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence* seq = running_[i];
    if (seq->state != SequenceState::kDecode) continue;
    if (seq->num_pending > 0 && seq->request->has_penalties) continue;  // see the header
    while (seq->running() && !GrowBlocks(seq, blocks_)) Preempt(running_.back());
    if (seq->running()) plan->decodes.push_back(seq);
  }
}

void Scheduler::PlanWaiting(int budget, Plan* plan) {
  int num_deferred = 0;
  auto it = waiting_.begin();
  while (it != waiting_.end() && budget > 0 && num_rows() < max_rows_ &&
         num_deferred < kMaxDeferred) {
    LiveRequest* request = *it;
    Sequence* seq = NextWaiting(request);
    const Admission admission = seq == nullptr ? Admission::kDeferred : Admit(seq);
    if (admission == Admission::kNoRoom) return;
    if (admission == Admission::kDeferred) {
      if (seq != nullptr) ++num_deferred;
      ++it;
      continue;
    }
    budget -= PlanChunk(seq, budget, plan);
    if (!HasWaiting(*request)) it = waiting_.erase(it);  // else its next one is tried
  }
}

int Scheduler::PlanChunk(Sequence* seq, int budget, Plan* plan) {
  Chunk chunk{seq, std::min(budget, seq->num_tokens() - seq->num_computed), {}};
  if (chunk.completes() && seq->request->leader == seq) PlanForks(&chunk);
  plan->prefills.push_back(std::move(chunk));
  return plan->prefills.back().num_tokens;
}

void Scheduler::PlanForks(Chunk* chunk) {
  LiveRequest* request = chunk->seq->request;
  // A fork takes a block now, and one more is left for it as for any running row.
  const int room = (blocks_->num_available() - num_forks_ - num_rows()) / 2;
  const int num_forks =
      std::min({static_cast<int>(request->fresh.size()), max_rows_ - num_rows(), room});
  for (int i = 0; i < num_forks; ++i) {
    chunk->forks.push_back(&request->sequences[*request->fresh.begin()]);
    request->fresh.erase(request->fresh.begin());
    ++num_forks_;
  }
}

Scheduler::Admission Scheduler::Admit(Sequence* seq) {
  const std::vector<int32_t> prefix = FindPrefix(seq, *blocks_);
  if (IsBeingComputed(seq, static_cast<int>(prefix.size()))) return Admission::kDeferred;
  // A hit on a block that nobody uses takes it out of what Allocate can give.
  const auto num_revived = std::count_if(prefix.begin(), prefix.end(),
                                         [&](int32_t b) { return blocks_->ref_count(b) == 0; });
  const int num_new = NumBlocks(seq->num_tokens()) - static_cast<int>(prefix.size());
  const int room =
      blocks_->num_available() - static_cast<int>(num_revived) - num_forks_ - num_rows();
  if (num_new > room) return Admission::kNoRoom;

  // Whoever lost its blocks while a token was pending got it before this plan.
  CHECK_EQ(seq->num_pending, 0);
  LiveRequest* request = seq->request;
  if (seq->output.empty()) {
    request->fresh.erase(seq->ordinal);
    request->leader = seq;
  } else {
    request->stalled.erase(seq->ordinal);
  }
  if (!request->was_admitted) {
    request->was_admitted = true;
    request->cached_tokens = static_cast<int32_t>(prefix.size()) * kBlockSize;
    --num_unstarted_;
  }
  TakeBlocks(seq, prefix, blocks_);
  seq->state = SequenceState::kPrefill;
  InsertRunning(seq);
  return Admission::kAdmitted;
}

bool Scheduler::IsBeingComputed(Sequence* seq, int block_idx) const {
  const int end = (block_idx + 1) * kBlockSize;
  if (end >= seq->num_tokens()) return false;  // only the part that a hit cannot give is missing
  const BlockHash& wanted = seq->Hash(block_idx);
  return std::any_of(running_.begin(), running_.end(), [&](Sequence* other) {
    return other->state == SequenceState::kPrefill && other->num_computed < end &&
           other->num_tokens() >= end && !other->cache_broken && other->Hash(block_idx) == wanted;
  });
}

void Scheduler::Launched(const Plan& plan) {
  for (Sequence* seq : plan.decodes) {
    Computed(seq, 1);
    EndIfFull(seq);
  }
  for (const Chunk& chunk : plan.prefills) {
    Computed(chunk.seq, chunk.num_tokens);
    for (Sequence* fork : chunk.forks) StartFork(*chunk.seq, fork);
    EndIfFull(chunk.seq);  // after its forks took their blocks from it
  }
  CHECK_EQ(num_forks_, 0);
}

void Scheduler::Computed(Sequence* seq, int num_tokens) {
  DropCopySource(seq, blocks_);
  seq->num_computed += num_tokens;
  CHECK_LE(seq->num_computed, seq->num_tokens());
  CacheFullBlocks(seq, blocks_);
  if (seq->num_computed < seq->num_tokens()) return;  // a prefill goes on
  seq->state = SequenceState::kDecode;
  ++seq->num_pending;
  if (seq->request->leader == seq) seq->request->leader = nullptr;
}

void Scheduler::StartFork(const Sequence& leader, Sequence* child) {
  CHECK(child->state == SequenceState::kWaiting || child->state == SequenceState::kPreempted);
  --num_forks_;
  ++child->num_pending;
  if (child->is_full()) {
    child->state = SequenceState::kEnding;
    return;
  }
  ForkBlocks(leader, static_cast<int>(leader.request->request.prompt_ids.size()), child, blocks_);
  child->state = SequenceState::kDecode;
  InsertRunning(child);
}

void Scheduler::EndIfFull(Sequence* seq) {
  if (seq->state != SequenceState::kDecode || !seq->is_full()) return;
  StopRunning(seq);
  seq->state = SequenceState::kEnding;
}

void Scheduler::TokenArrived(Sequence* seq, int32_t token) {
  CHECK_GT(seq->num_pending, 0);
  --seq->num_pending;
  seq->Append(token);
  CacheFullBlocks(seq, blocks_);
}

void Scheduler::Preempt(Sequence* seq) {
  CHECK_EQ(running_.back(), seq);
  running_.pop_back();
  ReleaseBlocks(seq, blocks_);
  seq->state = SequenceState::kPreempted;
  ++num_preemptions_;
  Wait(seq);
}

void Scheduler::Wait(Sequence* seq) {
  LiveRequest* request = seq->request;
  if (request->leader == seq) request->leader = nullptr;
  (seq->num_generated() == 0 ? request->fresh : request->stalled).insert(seq->ordinal);
  waiting_.insert(request);
}

void Scheduler::Finish(Sequence* seq) {
  CHECK(seq->state != SequenceState::kFinished);
  LiveRequest* request = seq->request;
  if (seq->running()) {
    StopRunning(seq);
    if (request->leader == seq) request->leader = nullptr;
  } else if (seq->state != SequenceState::kEnding) {
    CHECK_EQ(request->fresh.erase(seq->ordinal) + request->stalled.erase(seq->ordinal), 1u);
  }
  seq->state = SequenceState::kFinished;
  if (HasWaiting(*request)) return;
  waiting_.erase(request);
  if (!request->was_admitted) --num_unstarted_;
}

void Scheduler::StopRunning(Sequence* seq) {
  running_.erase(std::find(running_.begin(), running_.end(), seq));
  ReleaseBlocks(seq, blocks_);
}

void Scheduler::InsertRunning(Sequence* seq) {
  const auto before = [](const Sequence* a, const Sequence* b) { return GoesBefore(*a, *b); };
  running_.insert(std::upper_bound(running_.begin(), running_.end(), seq, before), seq);
}

int64_t Scheduler::QueuedTokens() const {
  int64_t num_tokens = 0;
  for (const Sequence* seq : running_) {
    if (seq->state == SequenceState::kPrefill) num_tokens += seq->num_tokens() - seq->num_computed;
  }
  for (const LiveRequest* request : waiting_) {
    if (!request->fresh.empty() && request->leader == nullptr) {
      num_tokens += static_cast<int64_t>(request->request.prompt_ids.size()) -
                    request->request.expected_cached_tokens;
    }
    for (int32_t ordinal : request->stalled) num_tokens += request->sequences[ordinal].num_tokens();
  }
  return num_tokens;
}

}  // namespace bough
