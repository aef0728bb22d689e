#include "worker/model/decoder.h"

#include "common/check.h"

namespace bough {
namespace {

// Columns of the widest part of the vocabulary.
int64_t WidestPart(const ModelConfig& config, int world) {
  return (config.vocab_size + world - 1) / world;
}

}  // namespace

Decoder::Decoder(const ModelConfig& config, const Shard& shard, const DecoderLimits& limits,
                 const AttentionOptions& attention, Device* device, const Weights* weights,
                 KvCache* cache, Communicator* comm)
    : config_(config),
      shard_(shard),
      limits_(limits),
      device_(device),
      dtype_(device->activation_dtype()),
      weights_(weights),
      cache_(cache),
      comm_(comm),
      products_(device),
      attention_(config, shard, limits.max_num_tokens, limits.max_num_logits_rows, attention,
                 device) {
  const int64_t num_tokens = limits.max_num_tokens, num_rows = limits.max_num_logits_rows;
  if (config.is_moe()) {
    moe_.emplace(config, shard, limits.max_num_tokens, device);
  } else {
    mlp_.emplace(config, shard, limits.max_num_tokens, device);
  }
  for (DeviceBuffer* rows : {&residual_, &delta_}) {
    *rows = DeviceBuffer::Scratch(device, num_tokens * config.hidden_size, dtype_);
  }
  normed_ = ProductInput(device, num_tokens, config.hidden_size);
  for (DeviceBuffer* rows : {&last_residual_, &last_delta_, &last_normed_}) {
    *rows = DeviceBuffer::Scratch(device, num_rows * config.hidden_size, dtype_);
  }
  const int64_t part = num_rows * WidestPart(config, shard.world);
  vocab_part_ = DeviceBuffer::Scratch(device, part, DType::kF32);
  if (shard.world > 1 && shard.rank == 0) {
    vocab_parts_ = DeviceBuffer::Scratch(device, part * shard.world, DType::kF32);
    logits_ = DeviceBuffer::Scratch(device, num_rows * config.vocab_size, DType::kF32);
  }
}

const float* Decoder::Forward(const DeviceBatch& batch, const int32_t* sampled) {
  CHECK_LE(batch.num_tokens, limits_.max_num_tokens);
  CHECK_LE(batch.num_logits_rows, limits_.max_num_logits_rows);
  CHECK_LE(batch.num_seqs, limits_.max_num_logits_rows);
  cache_->CopyBlocks(batch.copy_src, batch.copy_dst, batch.num_copies);
  device_->ops().Embedding({.ids = batch.tokens,
                            .sampled = sampled,
                            .table = weights_->embedding.data,
                            .out = residual_.data(),
                            .num_tokens = batch.num_tokens,
                            .hidden_size = config_.hidden_size,
                            .dtype = dtype_,
                            .table_dtype = weights_->embedding.dtype},
                           device_->stream());
  attention_.Plan(batch, *cache_);
  Delta delta = Delta::kNone;
  for (int layer = 0; layer < config_.num_hidden_layers; ++layer) {
    delta = Attend(batch, layer, delta);
    delta = FeedForward(batch.num_tokens, layer);
  }
  return Logits(batch.num_logits_rows, LastNorm(batch, delta));
}

// `next`: the weight that the normed rows meet.
AddRmsNormParams Decoder::Norm(int num_tokens, Delta delta, const Weight& weight,
                               const Weight& next) const {
  AddRmsNormParams p = {.residual = residual_.data(),
                        .weight = static_cast<const float*>(weight.data),
                        .out = normed_.data(),
                        .out_scale = normed_.scale(),
                        .num_tokens = num_tokens,
                        .hidden_size = config_.hidden_size,
                        .eps = config_.rms_norm_eps,
                        .dtype = dtype_,
                        .out_dtype = normed_.For(next).dtype};
  if (delta == Delta::kRows) p.x = delta_.data();
  if (delta == Delta::kExperts) {
    p.x = moe_->rows();
    p.row_of_pair = moe_->row_of_pair();
    p.expert_weights = moe_->expert_weights();
    p.top_k = moe_->top_k();
  }
  return p;
}

Decoder::Delta Decoder::Attend(const DeviceBatch& batch, int layer, Delta delta) {
  const LayerWeights& weights = weights_->layers[layer];
  device_->ops().AddRmsNorm(Norm(batch.num_tokens, delta, weights.input_norm, weights.qkv),
                            device_->stream());
  attention_.Forward(batch, weights, *cache_, layer, normed_.For(weights.qkv), products_,
                     delta_.data());
  SumOverRanks(batch.num_tokens);
  return Delta::kRows;
}

// The last layer's experts are combined here, since only some rows go on.
Decoder::Delta Decoder::FeedForward(int num_tokens, int layer) {
  const LayerWeights& weights = weights_->layers[layer];
  const AddRmsNormParams norm =
      Norm(num_tokens, Delta::kRows, weights.post_attention_norm, weights.gate_up);
  const Rows x = normed_.For(weights.gate_up);
  if (mlp_) {
    device_->ops().AddRmsNorm(norm, device_->stream());
    mlp_->Forward(num_tokens, weights, x, products_, delta_.data());
  } else {
    device_->ops().AddRmsNormGate({.norm = norm,
                                   .gate = weights.gate.data,
                                   .expert_ids = moe_->expert_ids(),
                                   .expert_weights = moe_->expert_weights(),
                                   .num_experts = config_.num_local_experts,
                                   .top_k = moe_->top_k(),
                                   .gate_dtype = weights.gate.dtype},
                                  device_->stream());
    moe_->Forward(num_tokens, weights, x, products_);
    if (shard_.world == 1 && layer + 1 < config_.num_hidden_layers) return Delta::kExperts;
    moe_->Combine(num_tokens, delta_.data());
  }
  SumOverRanks(num_tokens);
  return Delta::kRows;
}

void Decoder::SumOverRanks(int num_tokens) {
  comm_->AllReduceSum(delta_.data(), int64_t{num_tokens} * config_.hidden_size, dtype_);
}

// The final norm of the rows whose logits are asked for.
const void* Decoder::LastNorm(const DeviceBatch& batch, Delta delta) {
  CHECK(delta != Delta::kExperts);
  AddRmsNormParams p = Norm(batch.num_logits_rows, delta, weights_->norm, weights_->lm_head);
  p.out = last_normed_.data();
  if (!batch.all_logits()) {
    GatherRows(residual_, batch, last_residual_);
    GatherRows(delta_, batch, last_delta_);
    p.residual = last_residual_.data();
    p.x = delta == Delta::kNone ? nullptr : last_delta_.data();
  }
  device_->ops().AddRmsNorm(p, device_->stream());
  return last_normed_.data();
}

// out[i] = rows[logits_tokens[i]]: an embedding whose table is the activations.
void Decoder::GatherRows(const DeviceBuffer& rows, const DeviceBatch& batch,
                         const DeviceBuffer& out) {
  device_->ops().Embedding({.ids = batch.logits_tokens,
                            .table = rows.data(),
                            .out = out.data(),
                            .num_tokens = batch.num_logits_rows,
                            .hidden_size = config_.hidden_size,
                            .dtype = dtype_,
                            .table_dtype = dtype_},
                           device_->stream());
}

const float* Decoder::Logits(int num_rows, const void* x) {
  products_.Dense({x, nullptr, dtype_}, weights_->lm_head, num_rows,
                  static_cast<int>(shard_.vocab.size()), config_.hidden_size, vocab_part_.data(),
                  DType::kF32);
  if (shard_.world == 1) return vocab_part_.as<float>();
  const int64_t part = num_rows * WidestPart(config_, shard_.world);
  comm_->Gather(vocab_part_.as<float>(), part, vocab_parts_.as<float>());
  if (shard_.rank != 0) return nullptr;
  // The ranks' columns side by side.
  for (int rank = 0; rank < shard_.world; ++rank) {
    const Range columns = PartOf(config_.vocab_size, shard_.world, rank);
    const int64_t row_bytes = columns.size() * static_cast<int64_t>(sizeof(float));
    device_->CopyRows(logits_.as<float>() + columns.begin, config_.vocab_size * sizeof(float),
                      vocab_parts_.as<float>() + rank * part, row_bytes, row_bytes, num_rows);
  }
  return logits_.as<float>();
}

}  // namespace bough
