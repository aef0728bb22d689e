// What a step costs on this machine, fitted while it runs; no constant of any machine.
//
//   seconds = w0 + w1 * tokens + w2 * blocks,   w >= 0
//
// by least squares on relative errors, older steps fading by a factor per step. A direction that
// recent steps do not excite (only decode, say) keeps its last estimate.
#pragma once

#include <array>
#include <cstdint>

namespace bough {

// Called only from the engine thread.
class StepTimeModel {
 public:
  // One measured step: tokens of all rows, KV blocks that decode rows read. seconds <= 0 is
  // ignored.
  void Add(int64_t num_tokens, int64_t num_blocks, double seconds);

  double seconds_per_step() const { return weights_[0]; }
  double seconds_per_token() const { return weights_[1]; }
  double seconds_per_block() const { return weights_[2]; }

 private:
  static constexpr int kNum = 3;
  using Vector = std::array<double, kNum>;
  using Matrix = std::array<Vector, kNum>;
  void Solve();

  Matrix a_ = {};  // faded sums of x x^T
  Vector b_ = {};  // faded sums of x y
  Vector weights_ = {};
};

}  // namespace bough
