// --load-format=dummy: seeded random weights of the config's shape, for benchmarks without a
// checkpoint.
#pragma once

#include "worker/model/weight_source.h"

namespace bough {

// Element i of a tensor depends on its name and on i alone, so every layout cuts its shards from
// the same full tensors. Matrices are bf16, uniform with variance 1 / columns, which keeps
// activations near 1; vectors (norm weights) are ones.
class DummyWeights : public WeightSource {
 public:
  absl::StatusOr<DType> Find(const TensorSlice& slice) const override;
  void Copy(const TensorSlice& slice, DType dtype, void* out) const override;
  std::string fingerprint() const override { return "dummy"; }
};

}  // namespace bough
