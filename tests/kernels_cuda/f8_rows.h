// Quantised rows on the GPU, and how they are compared: two twins that differ in an f32 row's last
// bits may round an element to neighbouring codes, on few elements.
#pragma once

#include <cstdlib>

#include "tests/kernels_cuda/device_tensor.h"
#include "tests/testing/compare.h"

namespace bough {

// Elements and scales that no op would write.
class DeviceF8Rows {
 public:
  DeviceF8Rows(int64_t num_rows, int size)
      : elements_(std::vector<uint8_t>(num_rows * size, 0x55)),
        scales_(std::vector<float>(num_rows, -7)) {}

  uint8_t* elements() const { return elements_.as<uint8_t>(); }
  float* scales() const { return scales_.as<float>(); }
  std::vector<uint8_t> Elements() const { return elements_.Download<uint8_t>(); }
  std::vector<float> Scales() const { return scales_.Download<float>(); }

 private:
  DeviceBytes elements_, scales_;
};

// A code's place in the order of e4m3 numbers; +0 and -0 share one.
inline int E4M3Order(uint8_t code) { return code & 0x80 ? -(code & 0x7f) : code & 0x7f; }

// At most one step apart, on at most `max_share` of the elements; scales within what the CPU's sum
// of 8192 squares in 8 lanes errs by.
inline testing::AssertionResult CloseF8Rows(const DeviceF8Rows& got,
                                            const std::vector<uint8_t>& elements,
                                            const std::vector<float>& scales,
                                            double max_share = 0.01) {
  const int num_rows = static_cast<int>(scales.size());
  const auto same_scales = Close(got.Scales(), scales, {num_rows}, {.abs = 0, .rel = 2e-6});
  if (!same_scales) return same_scales;
  const std::vector<uint8_t> codes = got.Elements();
  if (codes.size() != elements.size()) return testing::AssertionFailure() << codes.size();
  size_t num_apart = 0;
  for (size_t i = 0; i < codes.size(); ++i) {
    const int steps = std::abs(E4M3Order(codes[i]) - E4M3Order(elements[i]));
    if (steps > 1) {
      return testing::AssertionFailure()
             << "element " << i % (codes.size() / num_rows) << " of row "
             << i / (codes.size() / num_rows) << ": " << steps << " steps from "
             << E4M3ToFloat(elements[i]) << " to " << E4M3ToFloat(codes[i]);
    }
    num_apart += steps;
  }
  if (num_apart > 4 + max_share * codes.size()) {
    return testing::AssertionFailure() << num_apart << " of " << codes.size() << " are apart";
  }
  return testing::AssertionSuccess();
}

}  // namespace bough
