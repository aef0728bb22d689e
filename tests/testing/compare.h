// The one way in which tests compare tensors.
//
//   EXPECT_TRUE(Close(got, want, {num_tokens, hidden_size}, kTolerance));
//   EXPECT_TRUE(SameBits(got, want, {num_tokens, hidden_size}));
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

namespace bough {

// |got - want| <= abs + rel * |want|
struct Tolerance {
  double abs = 0;
  double rel = 0;
};

// Row-major coordinate of element i, as "[1, 0, 7]".
inline std::string Coordinate(size_t i, const std::vector<int>& shape) {
  std::string text;
  for (size_t d = shape.size(); d-- > 0; i /= shape[d]) {
    text = std::to_string(i % shape[d]) + (text.empty() ? "" : ", ") + text;
  }
  return "[" + text + "]";
}

// Reports the first element for which `bad(got, want)` and the whole tensors' distance.
template <typename Got, typename Want, typename Bad>
testing::AssertionResult Compare(const std::vector<Got>& got, const std::vector<Want>& want,
                                 const std::vector<int>& shape, Bad bad) {
  size_t size = 1;
  for (int n : shape) size *= n;
  if (got.size() != size || want.size() != size) {
    return testing::AssertionFailure() << "the shape has " << size << " elements, got "
                                       << got.size() << ", want " << want.size();
  }
  size_t first_bad = size, num_bad = 0;
  double max_abs = 0, max_rel = 0, dot = 0, got_squared = 0, want_squared = 0;
  for (size_t i = 0; i < size; ++i) {
    const double g = got[i], w = want[i];
    if (bad(got[i], want[i])) {
      first_bad = std::min(first_bad, i);
      ++num_bad;
    }
    max_abs = std::max(max_abs, std::abs(g - w));
    if (w != 0) max_rel = std::max(max_rel, std::abs((g - w) / w));
    dot += g * w;
    got_squared += g * g;
    want_squared += w * w;
  }
  if (num_bad == 0) return testing::AssertionSuccess();
  std::ostringstream text;
  text.precision(9);
  text << num_bad << " of " << size << " differ, first at " << Coordinate(first_bad, shape)
       << ": got " << got[first_bad] << ", want " << want[first_bad] << "; max abs " << max_abs
       << ", max rel " << max_rel << ", cosine " << dot / std::sqrt(got_squared * want_squared);
  return testing::AssertionFailure() << text.str();
}

// NaN is close to nothing.
template <typename Got, typename Want>
testing::AssertionResult Close(const std::vector<Got>& got, const std::vector<Want>& want,
                               const std::vector<int>& shape, Tolerance tolerance) {
  return Compare(got, want, shape, [&](double g, double w) {
    return !(std::abs(g - w) <= tolerance.abs + tolerance.rel * std::abs(w));
  });
}

inline testing::AssertionResult SameBits(const std::vector<float>& got,
                                         const std::vector<float>& want,
                                         const std::vector<int>& shape) {
  return Compare(got, want, shape, [](float g, float w) {
    return std::bit_cast<uint32_t>(g) != std::bit_cast<uint32_t>(w);
  });
}

}  // namespace bough
