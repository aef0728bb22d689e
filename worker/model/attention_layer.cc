#include "worker/model/attention_layer.h"

#include <cmath>

#include "common/block_hash.h"

namespace bough {
namespace {

// A checkpoint's scales of K and V are those of an FP8 cache; others hold the values themselves.
const float* KvScale(const float* scale, const KvCache& cache) {
  return cache.dtype() == DType::kF8E4M3 ? scale : nullptr;
}

}  // namespace

AttentionLayer::AttentionLayer(const ModelConfig& config, const Shard& shard, int max_num_tokens,
                               int max_num_seqs, const AttentionOptions& options, Device* device)
    : device_(device),
      dtype_(device->activation_dtype()),
      hidden_size_(config.hidden_size),
      num_heads_(shard.num_heads()),
      num_kv_heads_(shard.num_kv_heads()),
      head_dim_(config.head_dim),
      sliding_window_(config.sliding_window),
      rope_theta_(config.rope_theta),
      sm_scale_(1.0f / std::sqrt(static_cast<float>(config.head_dim))),
      options_(options),
      qkv_size_((num_heads_ + 2 * num_kv_heads_) * head_dim_),
      qkv_(DeviceBuffer::Scratch(device, int64_t{max_num_tokens} * qkv_size_, dtype_)),
      attention_(
          DeviceBuffer::Scratch(device, int64_t{max_num_tokens} * num_heads_ * head_dim_, dtype_)),
      quantized_(device, max_num_tokens, int64_t{num_heads_} * head_dim_) {
  const int64_t num_bytes = device->ops().AttentionWorkspaceBytes(
      max_num_tokens, max_num_seqs, num_heads_, num_kv_heads_, head_dim_);
  workspace_ = DeviceBuffer::Scratch(device, num_bytes / 4 + 1, DType::kI32);
  device->Zero(workspace_.data(), workspace_.num_bytes());
}

void AttentionLayer::Forward(const DeviceBatch& batch, const LayerWeights& weights,
                             const KvCache& cache, int layer, const Rows& x,
                             const Products& products, void* out) {
  const Ops& ops = device_->ops();
  const Stream stream = device_->stream();
  products.Dense(x, weights.qkv, batch.num_tokens, qkv_size_, hidden_size_, qkv_.data());
  ops.RopeAppend({.qkv = qkv_.data(),
                  .positions = batch.positions,
                  .slot_mapping = batch.slot_mapping,
                  .k_cache = cache.k(layer),
                  .v_cache = cache.v(layer),
                  .k_scale = KvScale(weights.k_scale, cache),
                  .v_scale = KvScale(weights.v_scale, cache),
                  .num_tokens = batch.num_tokens,
                  .num_heads = num_heads_,
                  .num_kv_heads = num_kv_heads_,
                  .head_dim = head_dim_,
                  .block_size = kBlockSize,
                  .rope_theta = rope_theta_,
                  .dtype = dtype_,
                  .kv_dtype = cache.dtype()},
                 stream);
  PagedAttentionParams attention = Params(batch, cache);
  attention.k_cache = cache.k(layer);
  attention.v_cache = cache.v(layer);
  attention.k_scale = KvScale(weights.k_scale, cache);
  attention.v_scale = KvScale(weights.v_scale, cache);
  ops.PagedAttention(attention, stream);
  Rows attended = {attention_.data(), nullptr, dtype_};
  if (weights.o.dtype == DType::kF8E4M3) {
    ops.Quantize({.x = attention_.data(),
                  .out = quantized_.data(),
                  .scale = quantized_.scale(),
                  .num_rows = batch.num_tokens,
                  .size = num_heads_ * head_dim_,
                  .dtype = dtype_},
                 stream);
    attended = quantized_.For(weights.o);
  }
  products.Dense(attended, weights.o, batch.num_tokens, hidden_size_, num_heads_ * head_dim_, out);
}

void AttentionLayer::Plan(const DeviceBatch& batch, const KvCache& cache) {
  device_->ops().PlanAttention(Params(batch, cache), device_->stream());
}

PagedAttentionParams AttentionLayer::Params(const DeviceBatch& batch, const KvCache& cache) const {
  return {.q = qkv_.data(),
          .block_tables = batch.block_tables,
          .cu_seqlens_q = batch.cu_seqlens_q,
          .seqlens_kv = batch.seqlens_kv,
          .nodes = batch.nodes,
          .own_begin = batch.own_begin,
          .o = attention_.data(),
          .workspace = workspace_.data(),
          .max_seqlen_q = batch.max_seqlen_q,
          .num_seqs = batch.num_seqs,
          .num_nodes = Bifurcates(batch) ? batch.num_nodes : 0,
          .num_heads = num_heads_,
          .num_kv_heads = num_kv_heads_,
          .head_dim = head_dim_,
          .block_size = kBlockSize,
          .max_blocks = batch.max_blocks,
          .q_stride = qkv_size_,
          .sliding_window = sliding_window_,
          .sm_scale = sm_scale_,
          .dtype = dtype_,
          .kv_dtype = cache.dtype(),
          .fp8_products = options_.enable_fp8};
}

}  // namespace bough
