// Attention in f64 on the host, of rows that a GPU has computed.
#pragma once

#include <cstdint>
#include <vector>

#include "bench/attention_cases.h"

namespace bough {

// One sequence's keys of one KV head as the cache has them, block after block.
struct CachedKeys {
  std::vector<uint8_t> k_blocks, v_blocks;
};

// softmax(q K^T sm_scale) V over the first `num_keys` keys, q and the result [head_dim]; the layouts
// are those of kernels/attention.h and kv_layout.h.
std::vector<double> ExactAttention(const AttentionCase& c, const CachedKeys& keys,
                                   const uint16_t* q_bf16, int num_keys, double sm_scale);

}  // namespace bough
