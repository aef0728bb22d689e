// The least that a step can take: bytes and FLOPs by the model's shape, over the device's ceilings.
#pragma once

#include "worker/model/model_config.h"

namespace bough {

// How the model is stored and computed.
struct Precision {
  double weight_bytes = 2;   // per element of attention and experts; scales are left out
  double lm_head_bytes = 2;  // per element
  double kv_bytes = 4;       // per element
};

// Of all ranks together.
struct Ceilings {
  double read_gbps = 0;
  double product_gflops = 0;  // of the weights that have weight_bytes
  double other_gflops = 0;    // lm_head and attention
};

struct StepCost {
  double bytes = 0, product_flops = 0, other_flops = 0;
};

// Experts of a layer that a step of so many tokens touches when routing is uniform:
// E (1 - (1 - top_k / E)^num_tokens). 1 for a dense model.
double DistinctExperts(const ModelConfig& config, double num_tokens);

// Every weight that the step needs and every KV block is read once. num_tokens pass the layers,
// num_logits the lm_head; kv_tokens are read, num_pairs (query, key) pairs are scored.
StepCost CostOf(const ModelConfig& config, const Precision& precision, double num_tokens,
                double num_logits, double kv_tokens, double num_pairs);

// Attention's part of it.
StepCost AttentionCostOf(const ModelConfig& config, const Precision& precision, double kv_tokens,
                         double num_pairs);

// max(bytes / read ceiling, FLOPs / their ceilings), in ms.
double FloorMs(const StepCost& cost, const Ceilings& ceilings);

}  // namespace bough
