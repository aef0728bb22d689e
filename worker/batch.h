// One step of the model, flat, as rank 0 describes it to all ranks. Followers execute it and know
// nothing else: no requests, no hashes, no scheduler.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention.h"
#include "kernels/sampling.h"

namespace bough {

// Rows (sequences) come in this order: decode rows first, one token each, so sorted that rows
// which share blocks stand together; then prefill chunks. T tokens, S rows, D decode rows.
//
// A decode row's token may not be known to the host yet: it is in flight, sampled by the step that
// was launched just before and is not waited for. `tokens` then holds -1 - j, j its row of that
// step's `samples` (kernels/elementwise.h, Embedding). No two rows name the same j, and only decode
// rows name any; forks go on from rows that a prefill's logits gave. Nothing else of a batch depends
// on such a value. With one step in flight there are no negative tokens.
struct Batch {
  int64_t step = 0;
  bool shutdown = false;  // followers leave their loop; everything else is empty

  int32_t num_decode = 0;             // D
  int32_t max_blocks = 0;             // columns of block_tables
  std::vector<int32_t> tokens;        // [T]; -1 - j: what row j of the step before samples
  std::vector<int32_t> positions;     // [T]
  std::vector<int32_t> slot_mapping;  // [T] block * kBlockSize + row
  std::vector<int32_t> cu_seqlens_q;  // [S + 1]
  std::vector<int32_t> seqlens_kv;    // [S] tokens, this step's included
  std::vector<int32_t> block_tables;  // [S, max_blocks], padded with -1

  // The prefix forest over decode rows (worker/prefix_forest.h).
  std::vector<SharedNode> nodes;
  std::vector<int32_t> own_begin;  // [S] keys that a row's nodes cover; 0 for prefill chunks

  // Whole-block KV copies, done before anything else of the step.
  std::vector<int32_t> copy_src, copy_dst;

  // Tokens of [0, T) whose logits are needed, and the rows to sample from them. Flat arrays as in
  // kernels/sampling.h.
  std::vector<int32_t> logits_tokens;
  std::vector<SamplingRow> samples;
  std::vector<int32_t> bias_ids;
  std::vector<float> bias_values;
  std::vector<int32_t> seen_ids, seen_counts;
  std::vector<int32_t> banned_ids;
  int32_t max_top = 0;  // largest num_logprobs of samples, at least 0

  int num_tokens() const { return static_cast<int>(tokens.size()); }
  int num_seqs() const { return static_cast<int>(seqlens_kv.size()); }
};

// The batch as bytes for the broadcast, and back. Same build on both ends; Unpack CHECKs sizes.
void Pack(const Batch& batch, std::vector<uint8_t>* bytes);
void Unpack(std::span<const uint8_t> bytes, Batch* batch);

// What a step gives back, by row of Batch::samples.
struct StepResult {
  std::vector<int32_t> tokens;      // [samples]
  std::vector<float> logprobs;      // [samples]
  std::vector<int32_t> top_ids;     // [samples, max_top]
  std::vector<float> top_logprobs;  // [samples, max_top]
};

// Whoever can run a batch: the model (worker/model_runner.h), or a fake in tests. Called only from
// the engine thread. Batches run one after the other, in the order of their launch: what a step
// writes (KV, sampled tokens) is there for all later ones, and a block that no later step reads may
// be given to another sequence at once.
class StepExecutor {
 public:
  virtual ~StepExecutor() = default;
  // Starts a batch. A device works on it by itself; the CPU has run it when this returns. The batch
  // may change as soon as it returns. At most max_steps_in_flight() batches are launched and not yet
  // waited for.
  virtual void Launch(const Batch& batch) = 0;
  // The result of the oldest batch launched and not waited for.
  virtual StepResult Wait() = 0;
  // 2 where the host can plan a step while the one before runs, else 1.
  virtual int max_steps_in_flight() const = 0;
};

}  // namespace bough
