// The dense feed-forward of one layer on this rank's slice of intermediate_size:
//
//   out = (silu(x W_gate^T) * (x W_up^T)) W_down^T        (a partial sum over the ranks)
#pragma once

#include "worker/model/activations.h"
#include "worker/model/device_buffer.h"
#include "worker/model/model_config.h"
#include "worker/model/shard.h"
#include "worker/model/weights.h"

namespace bough {

class MlpLayer {
 public:
  MlpLayer(const ModelConfig& config, const Shard& shard, int max_num_tokens, Device* device);

  // x: [num_tokens, hidden_size], as weights.gate_up takes it. out: [num_tokens, hidden_size] in the
  // device's activation dtype. They may not alias.
  void Forward(int num_tokens, const LayerWeights& weights, const Rows& x, const Products& products,
               void* out);

 private:
  Device* const device_;
  const DType dtype_;
  const int hidden_size_, intermediate_size_;  // the latter this rank's
  DeviceBuffer gate_up_;                       // [max_num_tokens, 2 * intermediate_size]
  ProductInput hidden_;                        // [max_num_tokens, intermediate_size]
};

}  // namespace bough
