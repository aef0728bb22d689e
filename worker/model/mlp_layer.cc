#include "worker/model/mlp_layer.h"

namespace bough {

MlpLayer::MlpLayer(const ModelConfig& config, const Shard& shard, int max_num_tokens,
                   Device* device)
    : device_(device),
      dtype_(device->activation_dtype()),
      hidden_size_(config.hidden_size),
      intermediate_size_(shard.intermediate_size()),
      gate_up_(
          DeviceBuffer::Scratch(device, int64_t{2} * max_num_tokens * intermediate_size_, dtype_)),
      hidden_(device, max_num_tokens, intermediate_size_) {}

void MlpLayer::Forward(int num_tokens, const LayerWeights& weights, const Rows& x,
                       const Products& products, void* out) {
  products.Dense(x, weights.gate_up, num_tokens, 2 * intermediate_size_, hidden_size_,
                 gate_up_.data());
  const Rows hidden = hidden_.For(weights.down);
  device_->ops().SiluMul({.gate_up = gate_up_.data(),
                          .out = hidden_.data(),
                          .out_scale = hidden_.scale(),
                          .num_tokens = num_tokens,
                          .size = intermediate_size_,
                          .dtype = dtype_,
                          .out_dtype = hidden.dtype},
                         device_->stream());
  products.Dense(hidden, weights.down, num_tokens, hidden_size_, intermediate_size_, out);
}

}  // namespace bough
