#include "worker/batch_builder.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "common/check.h"
#include "worker/sequence_blocks.h"

namespace bough {
namespace {

void Clear(BuiltBatch* built) {
  // Moved out and back in empty: clear() keeps an array's memory.
  Batch& b = built->batch;
  for (auto* array : {&b.tokens, &b.positions, &b.slot_mapping, &b.cu_seqlens_q, &b.seqlens_kv,
                      &b.block_tables, &b.own_begin, &b.copy_src, &b.copy_dst, &b.logits_tokens,
                      &b.bias_ids, &b.seen_ids, &b.seen_counts, &b.banned_ids}) {
    array->clear();
  }
  b.nodes.clear();
  b.bias_values.clear();
  b.samples.clear();
  b.max_top = 0;
  built->sampled.clear();
  built->num_prefill_tokens = 0;
}

class Builder {
 public:
  Builder(const ModelLimits& limits, BuiltBatch* built)
      : limits_(limits), built_(*built), batch_(built->batch) {
    batch_.cu_seqlens_q.push_back(0);
  }

  // The next `num_tokens` uncomputed tokens of a sequence as one row.
  void AddRow(const Sequence& seq, int num_tokens) {
    const int begin = seq.num_computed, end = begin + num_tokens;
    const size_t at = batch_.tokens.size();
    batch_.tokens.resize(at + num_tokens);
    const int end_known = std::min(end, seq.num_known());
    seq.CopyTokens(begin, end_known, batch_.tokens.data() + at);
    if (end > end_known) {
      CHECK_EQ(num_tokens, 1) << "only a decode row goes on from a pending token";
      CHECK_EQ(seq.num_pending, 1);
      batch_.tokens[at] = -1 - seq.sampled_row;
    }
    for (int pos = begin; pos < end; ++pos) {
      batch_.positions.push_back(pos);
      batch_.slot_mapping.push_back(seq.block_table[pos / kBlockSize] * kBlockSize +
                                    pos % kBlockSize);
    }
    batch_.cu_seqlens_q.push_back(batch_.num_tokens());
    batch_.seqlens_kv.push_back(end);
    if (seq.copy_from != kNoBlock) {
      batch_.copy_src.push_back(seq.copy_from);
      batch_.copy_dst.push_back(seq.block_table[begin / kBlockSize]);
    }
  }

  // Samples after the row added last.
  void AddSamples(Sequence* seq, const std::vector<Sequence*>& forks) {
    batch_.logits_tokens.push_back(batch_.num_tokens() - 1);
    SamplingRow row = SettingsOf(*seq);
    batch_.samples.push_back(row);
    built_.sampled.push_back(seq);
    for (Sequence* fork : forks) {  // fresh as their leader: all but `choice` is equal
      row.choice = fork->choice;
      batch_.samples.push_back(row);
      built_.sampled.push_back(fork);
    }
  }

  void AddBlockTables(const std::vector<const Sequence*>& rows) {
    batch_.max_blocks = 0;
    for (int32_t len : batch_.seqlens_kv) {
      batch_.max_blocks = std::max(batch_.max_blocks, NumBlocks(len));
    }
    batch_.block_tables.assign(rows.size() * batch_.max_blocks, kNoBlock);
    for (size_t i = 0; i < rows.size(); ++i) {
      std::copy_n(rows[i]->block_table.begin(), NumBlocks(batch_.seqlens_kv[i]),
                  batch_.block_tables.begin() + i * batch_.max_blocks);
    }
  }

 private:
  SamplingRow SettingsOf(const Sequence& seq) {
    const LiveRequest& request = *seq.request;
    const SamplingParams& p = request.request.sampling;
    SamplingRow row;
    row.logits_row = static_cast<int32_t>(batch_.logits_tokens.size()) - 1;
    row.temperature = p.temperature;
    row.top_p = p.top_p;
    row.min_p = p.min_p;
    row.top_k = p.top_k;
    row.repetition_penalty = p.repetition_penalty;
    row.presence_penalty = p.presence_penalty;
    row.frequency_penalty = p.frequency_penalty;
    row.seed = p.seed;
    row.choice = seq.choice;
    row.position = seq.num_generated();
    row.num_logprobs = p.logprobs;
    batch_.max_top = std::max(batch_.max_top, p.logprobs);
    std::tie(row.bias_begin, row.bias_end) = BiasOf(request);
    row.seen_begin = static_cast<int32_t>(batch_.seen_ids.size());
    if (request.has_penalties) {
      CHECK_EQ(seq.num_pending, 0) << "penalties count every token before";
      seq.seen.AppendTo(request.prompt_vocabulary, &batch_.seen_ids, &batch_.seen_counts);
    }
    row.seen_end = static_cast<int32_t>(batch_.seen_ids.size());
    row.banned_begin = static_cast<int32_t>(batch_.banned_ids.size());
    if (row.position < p.min_tokens) {
      if (!p.ignore_eos) batch_.banned_ids.push_back(limits_.eos_token_id);
      batch_.banned_ids.insert(batch_.banned_ids.end(), p.stop_token_ids.begin(),
                               p.stop_token_ids.end());
    }
    row.banned_end = static_cast<int32_t>(batch_.banned_ids.size());
    return row;
  }

  // One copy serves all choices of a request.
  std::pair<int32_t, int32_t> BiasOf(const LiveRequest& request) {
    const auto& bias = request.request.sampling.logit_bias;
    if (bias.empty()) return {0, 0};
    const auto begin = static_cast<int32_t>(batch_.bias_ids.size());
    const auto [it, is_new] =
        bias_ranges_.try_emplace(&request, begin, begin + static_cast<int32_t>(bias.size()));
    if (is_new) {
      for (const auto& [id, value] : bias) {
        batch_.bias_ids.push_back(id);
        batch_.bias_values.push_back(value);
      }
    }
    return it->second;
  }

  const ModelLimits& limits_;
  BuiltBatch& built_;
  Batch& batch_;
  absl::flat_hash_map<const LiveRequest*, std::pair<int32_t, int32_t>> bias_ranges_;
};

}  // namespace

void BuildBatch(const Plan& plan, const ModelLimits& limits, const ForestCosts& forest_costs,
                int64_t step, BuiltBatch* built) {
  Clear(built);
  built->batch.step = step;
  built->batch.num_decode = static_cast<int32_t>(plan.decodes.size());

  std::vector<DecodeRow> decode_rows;
  for (const Sequence* seq : plan.decodes) {
    CHECK_EQ(seq->num_computed + 1, seq->num_tokens());
    decode_rows.push_back({seq->block_table, seq->num_tokens()});
  }
  PrefixForest forest = BuildPrefixForest(decode_rows, forest_costs);
  built->batch.nodes = std::move(forest.nodes);
  built->batch.own_begin = std::move(forest.own_begin);
  built->batch.own_begin.resize(plan.decodes.size() + plan.prefills.size(), 0);
  built->num_decode_blocks = forest.num_blocks_read;
  built->num_shared_rows = forest.num_shared_rows;

  Builder builder(limits, built);
  std::vector<const Sequence*> rows;
  for (int32_t i : forest.order) {
    Sequence* seq = plan.decodes[i];
    builder.AddRow(*seq, 1);
    builder.AddSamples(seq, {});
    rows.push_back(seq);
  }
  for (const Chunk& chunk : plan.prefills) {
    builder.AddRow(*chunk.seq, chunk.num_tokens);
    if (chunk.completes()) builder.AddSamples(chunk.seq, chunk.forks);
    rows.push_back(chunk.seq);
    built->num_prefill_tokens += chunk.num_tokens;
  }
  builder.AddBlockTables(rows);
}

}  // namespace bough
