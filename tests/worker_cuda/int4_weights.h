// A checkpoint whose matrices are rounded to 4 bits: a loss that every measure of quality has to see.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "worker/model/weight_source.h"

namespace bough::testing {

// Attention's and the experts' matrices: groups of 32 columns, each element the nearest of 15 multiples
// of a seventh of the group's largest magnitude. Handed out in bf16; all else is the source's.
class Int4Weights : public WeightSource {
 public:
  explicit Int4Weights(std::unique_ptr<WeightSource> source) : source_(std::move(source)) {}

  // INVALID_ARGUMENT for a matrix that is not stored in bf16.
  absl::StatusOr<StoredTensor> Find(const std::string& tensor, const Shape& shape) const override;
  absl::StatusOr<std::vector<float>> FindScale(const std::string& tensor,
                                               int64_t count) const override {
    return source_->FindScale(tensor, count);
  }
  std::string fingerprint() const override { return source_->fingerprint() + "-int4"; }

 private:
  const std::unique_ptr<WeightSource> source_;
  mutable std::map<std::string, std::vector<uint16_t>> rounded_;
};

}  // namespace bough::testing
