// From a plan to the flat batch: the one place where sequences turn into arrays.
#pragma once

#include <cstdint>
#include <vector>

#include "common/sampling_params.h"
#include "worker/batch.h"
#include "worker/prefix_forest.h"
#include "worker/scheduler.h"

namespace bough {

struct BuiltBatch {
  Batch batch;
  std::vector<Sequence*> sampled;  // as batch.samples: who gets the row's token
  // Of this step, for load and metrics.
  int64_t num_decode_blocks = 0;  // read by decode rows, a shared node's once
  int num_shared_rows = 0;        // decode rows in shared nodes
  int num_prefill_tokens = 0;
};

// Overwrites `built`, whose arrays keep their memory from step to step. A token that is pending is
// named by Sequence::sampled_row, which must be of the step launched just before.
void BuildBatch(const Plan& plan, const ModelLimits& limits, const ForestCosts& forest_costs,
                int64_t step, BuiltBatch* built);

}  // namespace bough
