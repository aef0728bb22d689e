// What a rank loads: which tensors make up which buffer, in which dtype. Names and shapes of the
// checkpoint's tensors are known here and nowhere else.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/model/model_config.h"
#include "worker/model/shard.h"
#include "worker/model/weight_source.h"
#include "worker/model/weights.h"

namespace bough {

// A rectangle of a checkpoint's tensor.
struct TensorSlice {
  std::string tensor;
  Shape shape;
  Range rows, cols;
  StoredTensor stored;
};

enum class WeightKind { kNorm, kLinear, kOther };  // other: embedding, gate, lm_head

// One buffer: the slices one below the other, then, 256-byte aligned, the rows' scales.
struct PlannedWeight {
  Weight* weight = nullptr;
  WeightKind kind = WeightKind::kOther;
  std::vector<TensorSlice> slices;
  DType dtype = DType::kF32;

  int64_t num_rows() const;
  int64_t num_cols() const { return slices[0].cols.size(); }
  int64_t element_bytes() const;
  int64_t scale_begin() const;
  int64_t num_bytes() const;
};

// A layer's k_scale or v_scale: one a KV head of this rank.
struct PlannedKvScale {
  const float** pointer = nullptr;
  std::vector<float> values;
};

struct WeightPlan {
  std::vector<PlannedWeight> weights;
  std::vector<PlannedKvScale> kv_scales;

  int64_t num_bytes() const;
};

// Asks `source` for all that the shard needs, and fails on the first tensor that is not there, or is
// not as the config says, or cannot be served. `weights` has its layers; it outlives the plan.
absl::StatusOr<WeightPlan> PlanWeights(const ModelConfig& config, const Shard& shard,
                                       const WeightSource& source, bool quantize, bool is_cuda,
                                       Weights* weights);

}  // namespace bough
