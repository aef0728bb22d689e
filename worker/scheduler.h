// What runs in the next step: continuous batching with chunked prefill.
//
//   1. Every sequence in decode gets one row. Where it lacks a block, the running sequence that goes
//      last (GoesBefore) is preempted until there is one, or until it is itself the last.
//   2. What is left of the token budget goes to running prefills, in order, in chunks.
//   3. Then to waiting requests, in order, while rows, blocks and budget last. A prefill takes all
//      its blocks when it is admitted, so it never waits for one halfway.
//
// The step before may still be in flight: a sequence then goes on from a token that only the device
// knows. It sits a step out where the host needs the token first, which is so for penalties: they
// count it. Such a row runs in every other step and holds up nobody else. A sequence that lacks only
// the value of its last token takes no further part (ending).
//
// Progress: the first running sequence always gets its block, since all others may be preempted for
// it and Submit refused whatever exceeds the pool by itself; with nothing running, the first
// waiting sequence is admitted. So Next is empty only when every sequence waits for a pending token.
//
// Admission leaves one free block for every running row: what they all will have taken 64 steps
// from now. Without that, a preempted sequence would come straight back and be preempted again.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/btree_set.h"
#include "worker/block_manager.h"
#include "worker/sequence.h"

namespace bough {

struct SchedulerConfig {
  int max_num_seqs = 256;             // rows per step
  int max_num_batched_tokens = 2048;  // tokens per step; rows never exceed it either
};

// A part of a prefill. `forks`: fresh siblings whose first token is sampled from the same logits,
// when the chunk ends a leader's prompt.
struct Chunk {
  Sequence* seq = nullptr;
  int num_tokens = 0;
  std::vector<Sequence*> forks;
  bool completes() const { return seq->num_computed + num_tokens == seq->num_tokens(); }
};

struct Plan {
  std::vector<Sequence*> decodes;
  std::vector<Chunk> prefills;
  bool empty() const { return decodes.empty() && prefills.empty(); }
};

// Called only from the engine thread. Requests are owned by the caller and outlive their sequences'
// stay.
class Scheduler {
 public:
  Scheduler(const SchedulerConfig& config, BlockManager* blocks);

  // All sequences of the request wait. REQUIRES: each fits the pool by itself.
  void Add(LiveRequest* request);

  Plan Next();

  // The plan that Next gave is launched: its tokens count as computed, every row that samples has
  // one more pending token. To be called before anything else if the plan is not empty.
  void Launched(const Plan& plan);

  // The oldest pending token of the sequence is known.
  void TokenArrived(Sequence* seq, int32_t token);

  // From any state: the sequence is over, its blocks are free.
  void Finish(Sequence* seq);

  int num_waiting_requests() const { return num_unstarted_; }  // those that were never admitted
  int64_t num_preemptions() const { return num_preemptions_; }
  // Tokens of prefills that run or wait, but for prefix hits; of those that wait, as the router
  // foresaw them.
  int64_t QueuedTokens() const;
  const std::vector<Sequence*>& running() const { return running_; }

 private:
  enum class Admission { kAdmitted, kDeferred, kNoRoom };

  int num_rows() const { return static_cast<int>(running_.size()) + num_forks_; }
  void PlanDecodes(Plan* plan);
  void PlanWaiting(int budget, Plan* plan);
  int PlanChunk(Sequence* seq, int budget, Plan* plan);
  void PlanForks(Chunk* chunk);
  Admission Admit(Sequence* seq);
  void Computed(Sequence* seq, int num_tokens);
  void StartFork(const Sequence& leader, Sequence* child);
  void EndIfFull(Sequence* seq);
  // Whether a running prefill is about to compute the block that `seq` would need first.
  bool IsBeingComputed(Sequence* seq, int block_idx) const;
  void Preempt(Sequence* seq);
  void Wait(Sequence* seq);
  void InsertRunning(Sequence* seq);
  void StopRunning(Sequence* seq);

  struct ByOrder {
    bool operator()(const LiveRequest* a, const LiveRequest* b) const { return GoesBefore(*a, *b); }
  };

  const int max_rows_;
  const int max_tokens_;
  BlockManager* const blocks_;
  std::vector<Sequence*> running_;                  // in order
  absl::btree_set<LiveRequest*, ByOrder> waiting_;  // all with a fresh or stalled sequence
  int num_forks_ = 0;  // planned, not yet launched; each is promised a block
  int num_unstarted_ = 0;
  int64_t num_preemptions_ = 0;
};

}  // namespace bough
