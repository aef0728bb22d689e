// The mixture of experts of one layer, on this rank's experts and slice of intermediate_size:
//
//   out(t) = sum_{e in topk(t), e here} p_e(t) * W2_e (silu(W1_e x(t)) * (W3_e x(t)))
//
// Every rank routes all tokens by itself; `out` is a partial sum over the ranks.
#pragma once

#include "worker/model/device_buffer.h"
#include "worker/model/model_config.h"
#include "worker/model/shard.h"
#include "worker/model/weights.h"

namespace bough {

class MoeLayer {
 public:
  MoeLayer(const ModelConfig& config, const Shard& shard, int max_num_tokens);

  // x, out: [num_tokens, hidden_size] f32; they may not alias.
  void Forward(int num_tokens, const LayerWeights& weights, const float* x, float* out);

 private:
  void Route(int num_tokens, const LayerWeights& weights, const float* x);

  const int hidden_size_, num_global_experts_, top_k_;
  const Range experts_;
  const int intermediate_size_;  // this rank's
  DeviceBuffer gate_logits_;     // [max_num_tokens, num_global_experts]
  DeviceBuffer expert_ids_;      // [max_num_tokens, top_k] i32
  DeviceBuffer expert_weights_;  // [max_num_tokens, top_k]
  DeviceBuffer expert_offsets_;  // [experts + 1] i32
  DeviceBuffer row_tokens_;      // [max_num_tokens * top_k] i32
  DeviceBuffer row_of_pair_;     // [max_num_tokens, top_k] i32
  DeviceBuffer gate_up_;         // [max_num_tokens * top_k, 2 * intermediate_size]
  DeviceBuffer hidden_;          // [max_num_tokens * top_k, intermediate_size]
  DeviceBuffer rows_;            // [max_num_tokens * top_k, hidden_size]
};

}  // namespace bough
