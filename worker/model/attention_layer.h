// Attention of one layer on this rank's heads:
//
//   q, k, v = split(x W_qkv^T);  rotate q, k;  append k, v to the cache;  out = attention(q) W_o^T
//
// `out` is a partial sum: the ranks' outputs add up to the layer's.
#pragma once

#include "worker/batch.h"
#include "worker/kv_cache.h"
#include "worker/model/device_buffer.h"
#include "worker/model/model_config.h"
#include "worker/model/shard.h"
#include "worker/model/weights.h"

namespace bough {

class AttentionLayer {
 public:
  // `enable_bifurcated` = false reads shared prefixes once per row.
  AttentionLayer(const ModelConfig& config, const Shard& shard, int max_num_tokens,
                 bool enable_bifurcated);

  // x, out: [num_tokens, hidden_size] f32; they may not alias.
  void Forward(const Batch& batch, const LayerWeights& weights, const KvCache& cache, int layer,
               const float* x, float* out);

 private:
  void Attend(const Batch& batch, const void* k_cache, const void* v_cache);
  void AttendBifurcated(const Batch& batch, const void* k_cache, const void* v_cache);
  void AttendPaged(const Batch& batch, int first_seq, const void* k_cache, const void* v_cache);

  const int hidden_size_, num_heads_, num_kv_heads_, head_dim_, sliding_window_;
  const float rope_theta_, sm_scale_;
  const bool enable_bifurcated_;
  const int qkv_size_;      // (num_heads + 2 num_kv_heads) * head_dim
  DeviceBuffer qkv_;        // [max_num_tokens, qkv_size]
  DeviceBuffer attention_;  // [max_num_tokens, num_heads * head_dim]
};

}  // namespace bough
