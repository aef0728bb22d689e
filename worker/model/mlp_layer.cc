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
                       void* gemm_workspace, void* out) {
  const Ops& ops = device_->ops();
  const Stream stream = device_->stream();
  ops.Gemm({.x = x.data,
            .x_scale = x.scale,
            .w = weights.gate_up.data,
            .w_scale = weights.gate_up.scale,
            .y = gate_up_.data(),
            .workspace = gemm_workspace,
            .m = num_tokens,
            .n = 2 * intermediate_size_,
            .k = hidden_size_,
            .dtype = x.dtype,
            .w_dtype = weights.gate_up.dtype,
            .out_dtype = dtype_},
           stream);
  const Rows hidden = hidden_.For(weights.down);
  ops.SiluMul({.gate_up = gate_up_.data(),
               .out = hidden_.data(),
               .out_scale = hidden_.scale(),
               .num_tokens = num_tokens,
               .size = intermediate_size_,
               .dtype = dtype_,
               .out_dtype = hidden.dtype},
              stream);
  ops.Gemm({.x = hidden.data,
            .x_scale = hidden.scale,
            .w = weights.down.data,
            .w_scale = weights.down.scale,
            .y = out,
            .workspace = gemm_workspace,
            .m = num_tokens,
            .n = hidden_size_,
            .k = intermediate_size_,
            .dtype = hidden.dtype,
            .w_dtype = weights.down.dtype,
            .out_dtype = dtype_},
           stream);
}

}  // namespace bough
