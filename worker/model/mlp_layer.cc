#include "worker/model/mlp_layer.h"

#include "kernels/ops.h"

namespace bough {

MlpLayer::MlpLayer(const ModelConfig& config, const Shard& shard, int max_num_tokens)
    : hidden_size_(config.hidden_size),
      intermediate_size_(shard.intermediate_size()),
      gate_up_(DeviceBuffer::Scratch<float>(int64_t{2} * max_num_tokens * intermediate_size_)),
      hidden_(DeviceBuffer::Scratch<float>(int64_t{max_num_tokens} * intermediate_size_)) {}

void MlpLayer::Forward(int num_tokens, const LayerWeights& weights, const float* x, float* out) {
  ops::Gemm({.x = x,
             .w = weights.gate_up.data,
             .y = gate_up_.data(),
             .m = num_tokens,
             .n = 2 * intermediate_size_,
             .k = hidden_size_,
             .w_dtype = weights.gate_up.dtype});
  ops::SiluMul({.gate_up = gate_up_.data(),
                .out = hidden_.data(),
                .num_tokens = num_tokens,
                .size = intermediate_size_});
  ops::Gemm({.x = hidden_.data(),
             .w = weights.down.data,
             .y = out,
             .m = num_tokens,
             .n = hidden_size_,
             .k = intermediate_size_,
             .w_dtype = weights.down.dtype});
}

}  // namespace bough
