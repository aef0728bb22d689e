// Attention of one layer on this rank's heads:
//
//   q, k, v = split(x W_qkv^T);  rotate q, k;  append k, v to the cache;  out = attention(q) W_o^T
//
// `out` is a partial sum: the ranks' outputs add up to the layer's.
#pragma once

#include "worker/kv_cache.h"
#include "worker/model/activations.h"
#include "worker/model/device_batch.h"
#include "worker/model/device_buffer.h"
#include "worker/model/model_config.h"
#include "worker/model/shard.h"
#include "worker/model/weights.h"

namespace bough {

struct AttentionOptions {
  bool enable_bifurcated = true;  // false: what rows share is read once per row
  bool enable_fp8 = false;        // PagedAttentionParams::fp8_products
};

class AttentionLayer {
 public:
  AttentionLayer(const ModelConfig& config, const Shard& shard, int max_num_tokens,
                 int max_num_seqs, const AttentionOptions& options, Device* device);

  // Once a step, before the layers.
  void Plan(const DeviceBatch& batch, const KvCache& cache);

  // x: [num_tokens, hidden_size], as weights.qkv takes it. out: [num_tokens, hidden_size] in the
  // device's activation dtype. They may not alias.
  void Forward(const DeviceBatch& batch, const LayerWeights& weights, const KvCache& cache,
               int layer, const Rows& x, const Products& products, void* out);

  // Whether the batch's shared nodes are read once for all of their rows.
  bool Bifurcates(const DeviceBatch& batch) const {
    return options_.enable_bifurcated && batch.any_shared;
  }

 private:
  // Of all layers; without the cache's pointers and scales.
  PagedAttentionParams Params(const DeviceBatch& batch, const KvCache& cache) const;

  Device* const device_;
  const DType dtype_;
  const int hidden_size_, num_heads_, num_kv_heads_, head_dim_, sliding_window_;
  const float rope_theta_, sm_scale_;
  const AttentionOptions options_;
  const int qkv_size_;      // (num_heads + 2 num_kv_heads) * head_dim
  DeviceBuffer qkv_;        // [max_num_tokens, qkv_size]
  DeviceBuffer attention_;  // [max_num_tokens, num_heads * head_dim]
  ProductInput quantized_;  // as attention_
  DeviceBuffer workspace_;
};

}  // namespace bough
