#include "worker/model/moe_layer.h"

#include "kernels/ops.h"

namespace bough {

MoeLayer::MoeLayer(const ModelConfig& config, const Shard& shard, int max_num_tokens)
    : hidden_size_(config.hidden_size),
      num_global_experts_(config.num_local_experts),
      top_k_(config.num_experts_per_tok),
      experts_(shard.experts),
      intermediate_size_(shard.intermediate_size()) {
  const int64_t max_pairs = int64_t{max_num_tokens} * top_k_;
  gate_logits_ = DeviceBuffer::Scratch<float>(int64_t{max_num_tokens} * num_global_experts_);
  expert_ids_ = DeviceBuffer::Scratch<int32_t>(max_pairs);
  expert_weights_ = DeviceBuffer::Scratch<float>(max_pairs);
  expert_offsets_ = DeviceBuffer::Scratch<int32_t>(experts_.size() + 1);
  row_tokens_ = DeviceBuffer::Scratch<int32_t>(max_pairs);
  row_of_pair_ = DeviceBuffer::Scratch<int32_t>(max_pairs);
  gate_up_ = DeviceBuffer::Scratch<float>(max_pairs * 2 * intermediate_size_);
  hidden_ = DeviceBuffer::Scratch<float>(max_pairs * intermediate_size_);
  rows_ = DeviceBuffer::Scratch<float>(max_pairs * hidden_size_);
}

void MoeLayer::Forward(int num_tokens, const LayerWeights& weights, const float* x, float* out) {
  Route(num_tokens, weights, x);
  const int num_experts = static_cast<int>(experts_.size());
  const int num_rows = expert_offsets_.as<int32_t>()[num_experts];
  ops::GroupedGemm({.x = x,
                    .x_rows = row_tokens_.as<int32_t>(),
                    .w = weights.gate_up.data,
                    .expert_offsets = expert_offsets_.as<int32_t>(),
                    .y = gate_up_.data(),
                    .num_experts = num_experts,
                    .num_rows = num_rows,
                    .n = 2 * intermediate_size_,
                    .k = hidden_size_,
                    .w_dtype = weights.gate_up.dtype});
  ops::SiluMul({.gate_up = gate_up_.data(),
                .out = hidden_.data(),
                .num_tokens = num_rows,
                .size = intermediate_size_});
  ops::GroupedGemm({.x = hidden_.data(),
                    .w = weights.down.data,
                    .expert_offsets = expert_offsets_.as<int32_t>(),
                    .y = rows_.data(),
                    .num_experts = num_experts,
                    .num_rows = num_rows,
                    .n = hidden_size_,
                    .k = intermediate_size_,
                    .w_dtype = weights.down.dtype});
  ops::MoeCombine({.rows = rows_.data(),
                   .row_of_pair = row_of_pair_.as<int32_t>(),
                   .expert_weights = expert_weights_.as<float>(),
                   .out = out,
                   .num_tokens = num_tokens,
                   .top_k = top_k_,
                   .hidden_size = hidden_size_});
}

void MoeLayer::Route(int num_tokens, const LayerWeights& weights, const float* x) {
  ops::Gemm({.x = x,
             .w = weights.gate.data,
             .y = gate_logits_.data(),
             .m = num_tokens,
             .n = num_global_experts_,
             .k = hidden_size_,
             .w_dtype = weights.gate.dtype});
  ops::TopKGate({.logits = gate_logits_.as<float>(),
                 .expert_ids = expert_ids_.as<int32_t>(),
                 .expert_weights = expert_weights_.as<float>(),
                 .num_tokens = num_tokens,
                 .num_experts = num_global_experts_,
                 .top_k = top_k_});
  ops::MoeRoute({.expert_ids = expert_ids_.as<int32_t>(),
                 .expert_offsets = expert_offsets_.as<int32_t>(),
                 .row_tokens = row_tokens_.as<int32_t>(),
                 .row_of_pair = row_of_pair_.as<int32_t>(),
                 .num_tokens = num_tokens,
                 .top_k = top_k_,
                 .expert_begin = static_cast<int32_t>(experts_.begin),
                 .expert_end = static_cast<int32_t>(experts_.end)});
}

}  // namespace bough
