// Where weights come from: a checkpoint (checkpoint.h) or a seeded dice (dummy_weights.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/dtype.h"

namespace bough {

// A matrix [rows, cols], or a vector [n], which counts as [n, 1].
using Shape = std::vector<int64_t>;

// A tensor as a source has it.
struct StoredTensor {
  DType dtype = DType::kBF16;
  // The whole tensor in host memory, row-major, aligned to nothing, as long as the source lives.
  // nullptr: it is stored nowhere; FillUniform (kernels/init.h) makes it from key, mean, half_width.
  const uint8_t* bytes = nullptr;
  uint64_t key = 0;
  float mean = 0, half_width = 0;
  std::vector<float> scale;  // f8_e4m3: one for all rows or one a row, as stored; else none
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // F32, F16, BF16, or F8_E4M3 with its scales; an error when the tensor is absent, has another
  // shape, or its scales are not what they must be. `bytes` are not looked at.
  virtual absl::StatusOr<StoredTensor> Find(const std::string& tensor,
                                            const Shape& shape) const = 0;
  // Scales by themselves, those of the FP8 KV cache: one, or one each of `count`. None when there
  // is no such tensor.
  virtual absl::StatusOr<std::vector<float>> FindScale(const std::string& tensor,
                                                       int64_t count) const = 0;
  // Equal for equal weights; for the block hashes.
  virtual std::string fingerprint() const = 0;
};

}  // namespace bough
