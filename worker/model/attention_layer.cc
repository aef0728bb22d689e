#include "worker/model/attention_layer.h"

#include <algorithm>
#include <cmath>

#include "common/block_hash.h"
#include "kernels/ops.h"

namespace bough {

AttentionLayer::AttentionLayer(const ModelConfig& config, const Shard& shard, int max_num_tokens,
                               bool enable_bifurcated)
    : hidden_size_(config.hidden_size),
      num_heads_(shard.num_heads()),
      num_kv_heads_(shard.num_kv_heads()),
      head_dim_(config.head_dim),
      sliding_window_(config.sliding_window),
      rope_theta_(config.rope_theta),
      sm_scale_(1.0f / std::sqrt(static_cast<float>(config.head_dim))),
      enable_bifurcated_(enable_bifurcated),
      qkv_size_((num_heads_ + 2 * num_kv_heads_) * head_dim_),
      qkv_(DeviceBuffer::Scratch<float>(int64_t{max_num_tokens} * qkv_size_)),
      attention_(DeviceBuffer::Scratch<float>(int64_t{max_num_tokens} * num_heads_ * head_dim_)) {}

void AttentionLayer::Forward(const Batch& batch, const LayerWeights& weights, const KvCache& cache,
                             int layer, const float* x, float* out) {
  ops::Gemm({.x = x,
             .w = weights.qkv.data,
             .y = qkv_.data(),
             .m = batch.num_tokens(),
             .n = qkv_size_,
             .k = hidden_size_,
             .w_dtype = weights.qkv.dtype});
  ops::RopeAppend({.qkv = qkv_.data(),
                   .positions = batch.positions.data(),
                   .slot_mapping = batch.slot_mapping.data(),
                   .k_cache = cache.k(layer),
                   .v_cache = cache.v(layer),
                   .num_tokens = batch.num_tokens(),
                   .num_heads = num_heads_,
                   .num_kv_heads = num_kv_heads_,
                   .head_dim = head_dim_,
                   .block_size = kBlockSize,
                   .rope_theta = rope_theta_,
                   .kv_dtype = KvCache::kDType});
  Attend(batch, cache.k(layer), cache.v(layer));
  ops::Gemm({.x = attention_.data(),
             .w = weights.o.data,
             .y = out,
             .m = batch.num_tokens(),
             .n = hidden_size_,
             .k = num_heads_ * head_dim_,
             .w_dtype = weights.o.dtype});
}

// Decode rows that share a prefix are read bifurcated; all else, and everything behind a sliding
// window, plainly.
void AttentionLayer::Attend(const Batch& batch, const void* k_cache, const void* v_cache) {
  const bool any_shared = std::any_of(batch.prefix_len.begin(), batch.prefix_len.end(),
                                      [](int32_t len) { return len > 0; });
  int first_plain = 0;
  if (enable_bifurcated_ && any_shared && sliding_window_ == 0) {
    AttendBifurcated(batch, k_cache, v_cache);
    first_plain = batch.num_decode;
  }
  if (first_plain < batch.num_seqs()) AttendPaged(batch, first_plain, k_cache, v_cache);
}

void AttentionLayer::AttendBifurcated(const Batch& batch, const void* k_cache,
                                      const void* v_cache) {
  ops::BifurcatedAttention({.q = qkv_.data(),
                            .k_cache = k_cache,
                            .v_cache = v_cache,
                            .block_tables = batch.block_tables.data(),
                            .seqlens_kv = batch.seqlens_kv.data(),
                            .group_start = batch.group_start.data(),
                            .prefix_len = batch.prefix_len.data(),
                            .o = attention_.data(),
                            .num_seqs = batch.num_decode,
                            .num_groups = static_cast<int>(batch.prefix_len.size()),
                            .num_heads = num_heads_,
                            .num_kv_heads = num_kv_heads_,
                            .head_dim = head_dim_,
                            .block_size = kBlockSize,
                            .max_blocks = batch.max_blocks,
                            .q_stride = qkv_size_,
                            .sm_scale = sm_scale_,
                            .kv_dtype = KvCache::kDType});
}

// Sequences [first_seq, num_seqs). Their query ranges count from the batch's first token, so q and
// o stay where they are.
void AttentionLayer::AttendPaged(const Batch& batch, int first_seq, const void* k_cache,
                                 const void* v_cache) {
  ops::PagedAttention(
      {.q = qkv_.data(),
       .k_cache = k_cache,
       .v_cache = v_cache,
       .block_tables = batch.block_tables.data() + int64_t{first_seq} * batch.max_blocks,
       .cu_seqlens_q = batch.cu_seqlens_q.data() + first_seq,
       .seqlens_kv = batch.seqlens_kv.data() + first_seq,
       .o = attention_.data(),
       .num_seqs = batch.num_seqs() - first_seq,
       .num_heads = num_heads_,
       .num_kv_heads = num_kv_heads_,
       .head_dim = head_dim_,
       .block_size = kBlockSize,
       .max_blocks = batch.max_blocks,
       .q_stride = qkv_size_,
       .sliding_window = sliding_window_,
       .sm_scale = sm_scale_,
       .kv_dtype = KvCache::kDType});
}

}  // namespace bough
