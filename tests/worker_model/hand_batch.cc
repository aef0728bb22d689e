#include "tests/worker_model/hand_batch.h"

#include <algorithm>

#include "common/block_hash.h"
#include "common/check.h"

namespace bough::testing {

HandBatches::HandBatches(std::vector<TokenIds> prompts, int max_len)
    : tokens_(std::move(prompts)), num_computed_(tokens_.size(), 0) {
  const int blocks_per_seq = (max_len + kBlockSize - 1) / kBlockSize;
  // Block ids run backwards, so that no test passes because a sequence's blocks lie in a row.
  num_blocks_ = num_seqs() * blocks_per_seq;
  int next = num_blocks_;
  block_tables_.resize(tokens_.size());
  for (auto& table : block_tables_) {
    for (int i = 0; i < blocks_per_seq; ++i) table.push_back(--next);
  }
}

void HandBatches::Share(const std::vector<SharedNode>& nodes) {
  nodes_ = nodes;
  for (const SharedNode& node : nodes) {
    CHECK_EQ(node.key_end % kBlockSize, 0);
    const std::vector<int32_t>& first = block_tables_[node.seq_begin];
    for (int seq = node.seq_begin + 1; seq < node.seq_end; ++seq) {
      CHECK_LT(node.key_end, static_cast<int>(tokens_[seq].size()));
      std::copy_n(first.begin(), node.key_end / kBlockSize, block_tables_[seq].begin());
      num_computed_[seq] = node.key_end;
    }
  }
}

void HandBatches::SharePrefix(int num_tokens) {
  if (num_tokens > 0) Share({{0, num_seqs(), 0, num_tokens}});
}

bool HandBatches::IsPrefilled(int seq) const {
  return num_computed_[seq] == static_cast<int>(tokens_[seq].size());
}

void HandBatches::AddRow(int seq, int num_tokens, int own_begin, Batch* batch) {
  if (batch->cu_seqlens_q.empty()) batch->cu_seqlens_q.push_back(0);
  const std::vector<int32_t>& blocks = block_tables_[seq];
  for (int i = 0; i < num_tokens; ++i) {
    const int position = num_computed_[seq]++;
    batch->tokens.push_back(tokens_[seq][position]);
    batch->positions.push_back(position);
    batch->slot_mapping.push_back(blocks[position / kBlockSize] * kBlockSize +
                                  position % kBlockSize);
  }
  batch->cu_seqlens_q.push_back(batch->num_tokens());
  batch->seqlens_kv.push_back(num_computed_[seq]);
  batch->own_begin.push_back(own_begin);
  batch->max_blocks = static_cast<int32_t>(blocks.size());
  batch->block_tables.insert(batch->block_tables.end(), blocks.begin(), blocks.end());
  if (IsPrefilled(seq)) {
    SamplingRow row;
    row.logits_row = static_cast<int32_t>(batch->logits_tokens.size());
    row.temperature = 0;
    batch->logits_tokens.push_back(batch->num_tokens() - 1);
    batch->samples.push_back(row);
  }
}

Batch HandBatches::Prefill(int seq, int max_chunk) {
  Batch batch;
  AddChunk(seq, max_chunk, &batch);
  return batch;
}

void HandBatches::AddChunk(int seq, int max_chunk, Batch* batch) {
  const int left = static_cast<int>(tokens_[seq].size()) - num_computed_[seq];
  AddRow(seq, std::min(left, max_chunk), 0, batch);
}

Batch HandBatches::Decode(int num_decode) {
  Batch batch;
  batch.num_decode = num_decode;
  std::vector<int32_t> own_begin(num_decode, 0);
  for (SharedNode node : nodes_) {
    node.seq_end = std::min(node.seq_end, num_decode);
    if (node.seq_begin >= node.seq_end) continue;
    batch.nodes.push_back(node);
    std::fill(own_begin.begin() + node.seq_begin, own_begin.begin() + node.seq_end, node.key_end);
  }
  for (int seq = 0; seq < num_decode; ++seq) {
    CHECK_EQ(num_computed_[seq] + 1, static_cast<int>(tokens_[seq].size()));
    AddRow(seq, 1, own_begin[seq], &batch);
  }
  return batch;
}

std::vector<TokenIds> GreedyTokens(HandBatches* sequences, int num_tokens, int max_chunk,
                                   const std::function<StepResult(const Batch&)>& execute) {
  std::vector<TokenIds> answers(sequences->num_seqs());
  const auto append = [&](int seq, int32_t token) {
    answers[seq].push_back(token);
    sequences->Append(seq, token);
  };
  for (int seq = 0; seq < sequences->num_seqs(); ++seq) {
    StepResult result;
    while (!sequences->IsPrefilled(seq)) result = execute(sequences->Prefill(seq, max_chunk));
    append(seq, result.tokens.at(0));
  }
  for (int i = 1; i < num_tokens; ++i) {
    const StepResult result = execute(sequences->Decode());
    for (int seq = 0; seq < sequences->num_seqs(); ++seq) append(seq, result.tokens.at(seq));
  }
  return answers;
}

}  // namespace bough::testing
