// What --check prints: where a rank's memory goes, and how many sequences of which length fit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "worker/config.h"

namespace bough {

struct MemoryPlan {
  std::vector<int64_t> weight_bytes;  // by rank
  int64_t block_bytes = 0;            // K and V of one block in all layers, on one rank
  int num_blocks = 0;
  int max_model_len = 0;  // tokens
};

// Sequences of `context` tokens that fit at once, when they share nothing.
int LargestBatch(const MemoryPlan& plan, int context, int max_num_seqs);

std::string MemoryPlanText(const MemoryPlan& plan, const Config& config);

}  // namespace bough
