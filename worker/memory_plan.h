// What --check prints: what a group's ranks need and have, and how many sequences of which length
// fit. Pure functions of sizes; who knows them is main.cc.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "worker/config.h"

namespace bough {

// Bytes of one rank's device, before anything is loaded.
struct RankMemory {
  int64_t weights = 0;
  int64_t scratch = 0;          // activations, workspaces, graphs: an estimate
  int64_t free = 0, total = 0;  // as the device says; total 0 = nobody counts (the CPU)
};

struct MemoryPlan {
  std::string device;             // as its maker calls it
  std::vector<RankMemory> ranks;  // by rank
  int64_t block_bytes = 0;        // K and V of one block in all layers, on one rank
  int max_model_len = 0;          // tokens
  int num_blocks = 0;             // on every rank: what the poorest has room for, 0 if nothing
};

// Bytes that config lets this rank take in all; what others have taken of the device counts against
// it. REQUIRES: rank.total > 0.
int64_t Allowance(const RankMemory& rank, const Config& config);

// Fills in num_blocks.
MemoryPlan PlanMemory(MemoryPlan plan, const Config& config);

// RESOURCE_EXHAUSTED says in one line what is too large for which rank.
absl::Status CheckFits(const MemoryPlan& plan, const Config& config);

// Sequences of `context` tokens that fit at once, when they share nothing.
int LargestBatch(const MemoryPlan& plan, int context, int max_num_seqs);

// Of a plan that fits or does not.
std::string MemoryPlanText(const MemoryPlan& plan, const Config& config);

}  // namespace bough
