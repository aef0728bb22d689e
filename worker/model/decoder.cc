#include "worker/model/decoder.h"

#include <algorithm>

#include "common/block_hash.h"
#include "common/check.h"
#include "kernels/ops.h"

namespace bough {
namespace {

// out[i] = rows[ids[i]]: an embedding whose table is the activations.
void GatherRows(const DeviceBuffer& rows, const std::vector<int32_t>& ids, int hidden_size,
                const DeviceBuffer& out) {
  ops::Embedding({.ids = ids.data(),
                  .table = rows.data(),
                  .out = out.data(),
                  .num_tokens = static_cast<int>(ids.size()),
                  .hidden_size = hidden_size});
}

// Columns of the widest part of the vocabulary.
int64_t WidestPart(const ModelConfig& config, int world) {
  return (config.vocab_size + world - 1) / world;
}

}  // namespace

Decoder::Decoder(const ModelConfig& config, const Shard& shard, const DecoderLimits& limits,
                 bool enable_bifurcated_attention, const Weights* weights, KvCache* cache,
                 Communicator* comm)
    : config_(config),
      shard_(shard),
      limits_(limits),
      weights_(weights),
      cache_(cache),
      comm_(comm),
      attention_(config, shard, limits.max_num_tokens, enable_bifurcated_attention) {
  if (config.is_moe()) {
    moe_.emplace(config, shard, limits.max_num_tokens);
  } else {
    mlp_.emplace(config, shard, limits.max_num_tokens);
  }
  for (DeviceBuffer* rows : {&residual_, &normed_, &delta_}) {
    *rows = DeviceBuffer::Scratch<float>(int64_t{limits.max_num_tokens} * config.hidden_size);
  }
  const int64_t num_rows = limits.max_num_logits_rows;
  for (DeviceBuffer* rows : {&last_residual_, &last_delta_, &last_normed_}) {
    *rows = DeviceBuffer::Scratch<float>(num_rows * config.hidden_size);
  }
  const int64_t part = num_rows * WidestPart(config, shard.world);
  vocab_part_ = DeviceBuffer::Scratch<float>(part);
  if (shard.world > 1 && shard.rank == 0) {
    vocab_parts_ = DeviceBuffer::Scratch<float>(part * shard.world);
    logits_ = DeviceBuffer::Scratch<float>(num_rows * config.vocab_size);
  }
}

const float* Decoder::Forward(const Batch& batch) {
  CheckBatch(batch);
  const int num_tokens = batch.num_tokens();
  const int64_t num_activations = int64_t{num_tokens} * config_.hidden_size;
  float* const residual = residual_.as<float>();
  float* const normed = normed_.as<float>();
  float* const delta = delta_.as<float>();

  cache_->CopyBlocks(batch.copy_src, batch.copy_dst);
  ops::Embedding({.ids = batch.tokens.data(),
                  .table = weights_->embedding.data,
                  .out = residual,
                  .num_tokens = num_tokens,
                  .hidden_size = config_.hidden_size,
                  .table_dtype = weights_->embedding.dtype});
  for (int i = 0; i < config_.num_hidden_layers; ++i) {
    const LayerWeights& layer = weights_->layers[i];
    AddRmsNorm(num_tokens, i == 0 ? nullptr : delta, residual, layer.input_norm, normed);
    attention_.Forward(batch, layer, *cache_, i, normed, delta);
    comm_->AllReduceSum(delta, num_activations);

    AddRmsNorm(num_tokens, delta, residual, layer.post_attention_norm, normed);
    if (moe_) {
      moe_->Forward(num_tokens, layer, normed, delta);
    } else {
      mlp_->Forward(num_tokens, layer, normed, delta);
    }
    comm_->AllReduceSum(delta, num_activations);
  }
  return Logits(batch);
}

void Decoder::AddRmsNorm(int num_tokens, const float* x, float* residual, const Weight& weight,
                         float* out) {
  ops::AddRmsNorm({.x = x,
                   .residual = residual,
                   .weight = weight.data,
                   .out = out,
                   .num_tokens = num_tokens,
                   .hidden_size = config_.hidden_size,
                   .eps = config_.rms_norm_eps});
}

const float* Decoder::Logits(const Batch& batch) {
  const int num_rows = static_cast<int>(batch.logits_tokens.size());
  GatherRows(residual_, batch.logits_tokens, config_.hidden_size, last_residual_);
  GatherRows(delta_, batch.logits_tokens, config_.hidden_size, last_delta_);
  AddRmsNorm(num_rows, last_delta_.as<float>(), last_residual_.as<float>(), weights_->norm,
             last_normed_.as<float>());
  ops::Gemm({.x = last_normed_.data(),
             .w = weights_->lm_head.data,
             .y = vocab_part_.data(),
             .m = num_rows,
             .n = static_cast<int>(shard_.vocab.size()),
             .k = config_.hidden_size,
             .w_dtype = weights_->lm_head.dtype});
  if (shard_.world == 1) return vocab_part_.as<float>();
  comm_->Gather(vocab_part_.as<float>(), num_rows * WidestPart(config_, shard_.world),
                vocab_parts_.as<float>());
  if (shard_.rank != 0) return nullptr;
  MergeVocab(num_rows);
  return logits_.as<float>();
}

// Puts the ranks' columns side by side.
void Decoder::MergeVocab(int num_rows) {
  const int64_t part_stride = num_rows * WidestPart(config_, shard_.world);
  for (int rank = 0; rank < shard_.world; ++rank) {
    const Range columns = PartOf(config_.vocab_size, shard_.world, rank);
    const float* part = vocab_parts_.as<float>() + rank * part_stride;
    float* out = logits_.as<float>() + columns.begin;
    for (int row = 0; row < num_rows; ++row) {
      std::copy_n(part + row * columns.size(), columns.size(), out + row * config_.vocab_size);
    }
  }
}

void Decoder::CheckBatch(const Batch& batch) const {
  const size_t num_tokens = batch.tokens.size(), num_seqs = batch.seqlens_kv.size();
  CHECK_LE(batch.num_tokens(), limits_.max_num_tokens);
  CHECK_LE(static_cast<int>(batch.logits_tokens.size()), limits_.max_num_logits_rows);
  CHECK_EQ(batch.positions.size(), num_tokens);
  CHECK_EQ(batch.slot_mapping.size(), num_tokens);
  CHECK_EQ(batch.cu_seqlens_q.size(), num_seqs + 1);
  CHECK_EQ(batch.cu_seqlens_q.back(), batch.num_tokens());
  CHECK_EQ(batch.block_tables.size(), num_seqs * batch.max_blocks);
  CHECK_LE(batch.num_decode, batch.num_seqs());
  for (int32_t token : batch.tokens) CHECK(0 <= token && token < config_.vocab_size) << token;
  for (int32_t slot : batch.slot_mapping) {
    CHECK(0 <= slot && slot < cache_->num_blocks() * int64_t{kBlockSize}) << slot;
  }
  for (int32_t token : batch.logits_tokens) CHECK(0 <= token && token < batch.num_tokens());
}

}  // namespace bough
