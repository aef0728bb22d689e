// The mixture of experts of one layer, on this rank's experts and slice of intermediate_size:
//
//   out(t) = sum_{e in topk(t), e here} p_e(t) * W2_e (silu(W1_e x(t)) * (W3_e x(t)))
//
// Every rank routes all tokens by itself; `out` is a partial sum over the ranks. The norm before the
// layer also routes (AddRmsNormGate), and the norm after it may also combine the experts' rows
// (AddRmsNorm with row_of_pair), so both ends are open here.
#pragma once

#include "worker/model/activations.h"
#include "worker/model/device_buffer.h"
#include "worker/model/model_config.h"
#include "worker/model/shard.h"
#include "worker/model/weights.h"

namespace bough {

class MoeLayer {
 public:
  MoeLayer(const ModelConfig& config, const Shard& shard, int max_num_tokens, Device* device);

  // Where the norm before the layer puts its choice.
  int32_t* expert_ids() const { return expert_ids_.as<int32_t>(); }      // [num_tokens, top_k]
  float* expert_weights() const { return expert_weights_.as<float>(); }  // [num_tokens, top_k]

  // x: [num_tokens, hidden_size], as weights.gate_up takes it. Afterwards rows() and row_of_pair()
  // hold the experts' outputs.
  void Forward(int num_tokens, const LayerWeights& weights, const Rows& x,
               const Products& products);

  const void* rows() const { return rows_.data(); }  // [num_tokens * top_k, hidden_size]
  const int32_t* row_of_pair() const { return row_of_pair_.as<int32_t>(); }  // [num_tokens, top_k]
  int top_k() const { return top_k_; }

  // out: [num_tokens, hidden_size], the rows' weighted sum.
  void Combine(int num_tokens, void* out);

 private:
  Device* const device_;
  const DType dtype_;
  const int hidden_size_, top_k_;
  const Range experts_;
  const int intermediate_size_;  // this rank's
  DeviceBuffer expert_ids_;      // [max_num_tokens, top_k] i32
  DeviceBuffer expert_weights_;  // [max_num_tokens, top_k]
  DeviceBuffer expert_offsets_;  // [experts + 1] i32
  DeviceBuffer row_of_pair_;     // [max_num_tokens, top_k] i32
  ProductInput expert_input_;    // [max_num_tokens * top_k, hidden_size]
  DeviceBuffer gate_up_;         // [max_num_tokens * top_k, 2 * intermediate_size]
  ProductInput hidden_;          // [max_num_tokens * top_k, intermediate_size]
  DeviceBuffer rows_;            // [max_num_tokens * top_k, hidden_size]
};

}  // namespace bough
