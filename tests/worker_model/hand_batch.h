// Batches by hand: a fixed set of sequences on blocks of their own, without a scheduler.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "worker/batch.h"

namespace bough::testing {

using TokenIds = std::vector<int32_t>;

// Sequences that grow together. Each owns blocks from the start, except for what it shares.
class HandBatches {
 public:
  // Blocks for `max_len` tokens a sequence.
  HandBatches(std::vector<TokenIds> prompts, int max_len);
  // The prompts of a node's sequences agree in its keys, which only the first of them computes. Call
  // before the first batch. REQUIRES: nodes as attention.h wants them, which end before the prompts.
  void Share(const std::vector<SharedNode>& nodes);
  // All prompts begin with these tokens, whole blocks; 0: nothing.
  void SharePrefix(int num_tokens);

  int num_seqs() const { return static_cast<int>(tokens_.size()); }
  int num_blocks() const { return num_blocks_; }
  const TokenIds& tokens(int seq) const { return tokens_[seq]; }

  // The next `max_chunk` tokens of one sequence's prompt. Logits and a greedy sample come from the
  // chunk that ends it.
  Batch Prefill(int seq, int max_chunk);
  bool IsPrefilled(int seq) const;
  // Adds that to a batch.
  void AddChunk(int seq, int max_chunk, Batch* batch);
  // One token of every sequence, or of the first `num_decode`, with the nodes that they share.
  Batch Decode() { return Decode(num_seqs()); }
  Batch Decode(int num_decode);
  void Append(int seq, int32_t token) { tokens_[seq].push_back(token); }

 private:
  void AddRow(int seq, int num_tokens, int own_begin, Batch* batch);

  std::vector<TokenIds> tokens_;
  std::vector<int> num_computed_;
  std::vector<std::vector<int32_t>> block_tables_;
  int num_blocks_ = 0;
  std::vector<SharedNode> nodes_;
};

// One step with nothing else in flight.
inline StepResult Execute(StepExecutor& executor, const Batch& batch) {
  executor.Launch(batch);
  return executor.Wait();
}

// Greedy continuations of all sequences, `num_tokens` each, decoded together after their prefills.
std::vector<TokenIds> GreedyTokens(HandBatches* sequences, int num_tokens, int max_chunk,
                                   const std::function<StepResult(const Batch&)>& execute);

}  // namespace bough::testing
