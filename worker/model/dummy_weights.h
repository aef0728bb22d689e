// --load-format=dummy: seeded random weights of the config's shape, for benchmarks without a
// checkpoint.
#pragma once

#include "worker/model/weight_source.h"

namespace bough {

// Element i of a tensor depends on its name and on i alone, so every layout cuts its shards from
// the same full tensors, and both backends have the same values. Matrices are bf16, uniform with
// variance 1 / columns, which keeps activations near 1; vectors (norm weights) are ones.
class DummyWeights : public WeightSource {
 public:
  absl::StatusOr<StoredTensor> Find(const std::string& tensor, const Shape& shape) const override;
  absl::StatusOr<std::vector<float>> FindScale(const std::string&, int64_t) const override;
  std::string fingerprint() const override { return "dummy"; }
};

}  // namespace bough
