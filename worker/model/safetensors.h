// The safetensors format: 8 bytes header length (little endian), a JSON header
//   {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
// and the tensors' bytes, offsets counted from the header's end.
//
// Checkpoints come from outside. Nothing of a file is believed before it is checked: the header
// fits and is JSON, every tensor's bytes lie within the file and are as many as its shape needs,
// and the tensors cover the data without overlap or gap. Errors are one line: file, tensor, what
// was expected and found.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/dtype.h"

namespace bough {

struct TensorView {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::span<const uint8_t> bytes;  // row-major, little endian; aligned as the file has it
};

// "[2, 3]".
std::string ShapeText(std::span<const int64_t> shape);

// The tensors of a whole file's bytes, in the order of their data; the views point into `file`.
// `path` is for error texts. Dtypes: F32, F16, BF16, F8_E4M3, I32; any other, such as F8_E5M2, is
// refused by its name.
absl::StatusOr<std::vector<TensorView>> ParseSafetensors(std::span<const uint8_t> file,
                                                         const std::string& path);

// A file mapped read-only for the object's lifetime. Must not be shortened meanwhile.
class MappedFile {
 public:
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const uint8_t> bytes() const { return bytes_; }

 private:
  explicit MappedFile(std::span<const uint8_t> bytes) : bytes_(bytes) {}
  std::span<const uint8_t> bytes_;
};

}  // namespace bough
