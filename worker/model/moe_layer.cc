#include "worker/model/moe_layer.h"

namespace bough {

MoeLayer::MoeLayer(const ModelConfig& config, const Shard& shard, int max_num_tokens,
                   Device* device)
    : device_(device),
      dtype_(device->activation_dtype()),
      hidden_size_(config.hidden_size),
      top_k_(config.num_experts_per_tok),
      experts_(shard.experts),
      intermediate_size_(shard.intermediate_size()) {
  const int64_t max_pairs = int64_t{max_num_tokens} * top_k_;
  expert_ids_ = DeviceBuffer::Scratch(device, max_pairs, DType::kI32);
  expert_weights_ = DeviceBuffer::Scratch(device, max_pairs, DType::kF32);
  expert_offsets_ = DeviceBuffer::Scratch(device, experts_.size() + 1, DType::kI32);
  row_of_pair_ = DeviceBuffer::Scratch(device, max_pairs, DType::kI32);
  expert_input_ = ProductInput(device, max_pairs, hidden_size_);
  gate_up_ = DeviceBuffer::Scratch(device, max_pairs * 2 * intermediate_size_, dtype_);
  hidden_ = ProductInput(device, max_pairs, intermediate_size_);
  rows_ = DeviceBuffer::Scratch(device, max_pairs * hidden_size_, dtype_);
}

void MoeLayer::Forward(int num_tokens, const LayerWeights& weights, const Rows& x,
                       const Products& products) {
  const Ops& ops = device_->ops();
  const Stream stream = device_->stream();
  const int num_experts = static_cast<int>(experts_.size());
  const int max_rows = num_tokens * top_k_;  // fewer where other ranks have experts
  ops.MoeRoute({.expert_ids = expert_ids(),
                .x = x.data,
                .x_scale = x.scale,
                .expert_offsets = expert_offsets_.as<int32_t>(),
                .row_of_pair = row_of_pair_.as<int32_t>(),
                .rows = expert_input_.data(),
                .row_scale = expert_input_.scale(),
                .num_tokens = num_tokens,
                .top_k = top_k_,
                .expert_begin = static_cast<int32_t>(experts_.begin),
                .expert_end = static_cast<int32_t>(experts_.end),
                .row_bytes = hidden_size_ * static_cast<int64_t>(SizeOf(x.dtype))},
               stream);
  Products::Experts experts = {expert_offsets_.as<int32_t>(), num_experts, max_rows,
                               /*offsets_known=*/false};
  products.Grouped(expert_input_.For(weights.gate_up), weights.gate_up, experts,
                   2 * intermediate_size_, hidden_size_, gate_up_.data());
  const Rows hidden = hidden_.For(weights.down);
  ops.SiluMul({.gate_up = gate_up_.data(),
               .out = hidden_.data(),
               .out_scale = hidden_.scale(),
               .num_rows = experts.offsets + num_experts,
               .num_tokens = max_rows,
               .size = intermediate_size_,
               .dtype = dtype_,
               .out_dtype = hidden.dtype},
              stream);
  experts.offsets_known = true;  // SiluMul waits, then lets this begin
  products.Grouped(hidden, weights.down, experts, hidden_size_, intermediate_size_, rows_.data());
}

void MoeLayer::Combine(int num_tokens, void* out) {
  device_->ops().MoeCombine({.rows = rows_.data(),
                             .row_of_pair = row_of_pair_.as<int32_t>(),
                             .expert_weights = expert_weights(),
                             .out = out,
                             .num_tokens = num_tokens,
                             .top_k = top_k_,
                             .hidden_size = hidden_size_,
                             .dtype = dtype_},
                            device_->stream());
}

}  // namespace bough
