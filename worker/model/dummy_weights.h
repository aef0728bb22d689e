// --load-format=dummy: seeded random weights of the config's shape, for benchmarks without a
// checkpoint.
#pragma once

#include "worker/model/weight_source.h"

namespace bough {

// Element i of a tensor depends on its name and on i alone, so every layout cuts its shards from
// the same full tensors, and both backends have the same values. Matrices are bf16, uniform with
// variance 1 / columns, except that embeddings have variance 1 and what attention and experts add to
// them is 1/8 as large: activations stay near 1 and each expert gets about its share of the tokens,
// whatever the depth. Vectors (norm weights) are ones.
class DummyWeights : public WeightSource {
 public:
  absl::StatusOr<StoredTensor> Find(const std::string& tensor, const Shape& shape) const override;
  absl::StatusOr<std::vector<float>> FindScale(const std::string&, int64_t) const override;
  std::string fingerprint() const override { return "dummy"; }
};

}  // namespace bough
