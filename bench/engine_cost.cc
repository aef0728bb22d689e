#include "bench/engine_cost.h"

#include <algorithm>
#include <cmath>

namespace bough {

double DistinctExperts(const ModelConfig& config, double num_tokens) {
  if (!config.is_moe()) return 1;
  const double share = 1.0 * config.num_experts_per_tok / config.num_local_experts;
  return config.num_local_experts * (1 - std::pow(1 - share, num_tokens));
}

StepCost AttentionCostOf(const ModelConfig& c, const Precision& precision, double kv_tokens,
                         double num_pairs) {
  const double layers = c.num_hidden_layers;
  const double kv_elements = layers * 2 * c.num_key_value_heads * c.head_dim;
  StepCost cost;
  cost.bytes = precision.kv_bytes * kv_elements * kv_tokens;
  cost.other_flops = 4 * layers * num_pairs * c.num_attention_heads * c.head_dim;
  return cost;
}

StepCost CostOf(const ModelConfig& c, const Precision& precision, double num_tokens,
                double num_logits, double kv_tokens, double num_pairs) {
  const double attention =
      1.0 * c.hidden_size * c.head_dim * (2 * c.num_attention_heads + 2 * c.num_key_value_heads);
  const double expert = 3.0 * c.hidden_size * c.intermediate_size;
  const double layers = c.num_hidden_layers;
  const double lm_head = 1.0 * c.hidden_size * c.vocab_size;
  const int top_k = c.is_moe() ? c.num_experts_per_tok : 1;
  StepCost cost = AttentionCostOf(c, precision, kv_tokens, num_pairs);
  cost.bytes +=
      precision.weight_bytes * layers * (attention + expert * DistinctExperts(c, num_tokens)) +
      precision.lm_head_bytes * lm_head;
  cost.product_flops = 2 * layers * num_tokens * (attention + expert * top_k);
  cost.other_flops += 2 * num_logits * lm_head;
  return cost;
}

double FloorMs(const StepCost& cost, const Ceilings& ceilings) {
  const double read = cost.bytes / ceilings.read_gbps;
  const double compute =
      cost.product_flops / ceilings.product_gflops + cost.other_flops / ceilings.other_gflops;
  return std::max(read, compute) * 1e-6;
}

}  // namespace bough
