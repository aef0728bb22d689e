// Where weights come from: a checkpoint (checkpoint.h) or a seeded dice (dummy_weights.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/dtype.h"
#include "worker/model/shard.h"

namespace bough {

// A rectangle of a checkpoint's tensor. A vector [n] counts as [n, 1].
struct TensorSlice {
  std::string tensor;
  std::vector<int64_t> shape;  // that the whole tensor must have
  Range rows, cols;

  int64_t num_elements() const { return rows.size() * cols.size(); }
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // The dtype in which the tensor is stored, F32, F16 or BF16; an error when it is absent or has
  // another shape.
  virtual absl::StatusOr<DType> Find(const TensorSlice& slice) const = 0;
  // Writes the slice row-major as `dtype`, F32 or BF16. REQUIRES: Find succeeded; dtype is BF16
  // only if it returned that.
  virtual void Copy(const TensorSlice& slice, DType dtype, void* out) const = 0;
  // Equal for equal weights; for the block hashes.
  virtual std::string fingerprint() const = 0;
};

}  // namespace bough
