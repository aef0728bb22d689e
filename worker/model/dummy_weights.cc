#include "worker/model/dummy_weights.h"

#include <cmath>

#include "xxhash.h"

namespace bough {

absl::StatusOr<StoredTensor> DummyWeights::Find(const std::string& tensor,
                                                const Shape& shape) const {
  StoredTensor stored;
  stored.key = XXH3_64bits(tensor.data(), tensor.size());
  if (shape.size() == 1) {
    stored.mean = 1;
  } else {
    stored.half_width = std::sqrt(3.0f / static_cast<float>(shape[1]));
  }
  return stored;
}

absl::StatusOr<std::vector<float>> DummyWeights::FindScale(const std::string&, int64_t) const {
  return std::vector<float>();
}

}  // namespace bough
