#include "worker/step_time.h"

#include <cmath>
#include <limits>
#include <utility>

namespace bough {
namespace {

constexpr double kFade = 0.99;  // per step: half of the weight lies on the last 69
// Pull of a step, a token and a block towards the last estimate, relative to each feature's own weight.
// Where steps do not tell a block's cost from the step's own (one sequence that decodes), the strong
// pull leaves blocks at 0: a router must not flee a context because of a cost that nobody measured.
constexpr double kRidge[] = {1e-3, 1e-3, 1e-1};
constexpr double kTiny = 1e-300;

}  // namespace

void StepTimeModel::Add(int64_t num_tokens, int64_t num_blocks, double seconds) {
  if (!(seconds > 0)) return;
  // Divided by the target, so that each step's relative error counts the same: y = 1.
  const Vector x = {1 / seconds, num_tokens / seconds, num_blocks / seconds};
  for (int i = 0; i < kNum; ++i) {
    for (int j = 0; j < kNum; ++j) a_[i][j] = kFade * a_[i][j] + x[i] * x[j];
    b_[i] = kFade * b_[i] + x[i];
  }
  Solve();
}

// Non-negative least squares over three weights: of all subsets that may be non-zero, the best
// whose solution is not negative.
void StepTimeModel::Solve() {
  Matrix a = a_;
  Vector b = b_;
  for (int i = 0; i < kNum; ++i) {
    a[i][i] += kRidge[i] * a_[i][i];
    b[i] += kRidge[i] * a_[i][i] * weights_[i];
  }
  Vector best = {};
  double best_error = std::numeric_limits<double>::infinity();
  for (int subset = 1; subset < 1 << kNum; ++subset) {
    Matrix m = {};
    Vector w = {};
    for (int i = 0; i < kNum; ++i) {
      const bool in = subset >> i & 1;
      for (int j = 0; j < kNum; ++j) m[i][j] = in && (subset >> j & 1) ? a[i][j] : i == j;
      w[i] = in ? b[i] : 0;
    }
    bool feasible = true;
    for (int k = 0; k < kNum && feasible; ++k) {  // Gauss-Jordan; m is positive definite
      feasible = m[k][k] > kTiny;
      for (int i = 0; i < kNum && feasible; ++i) {
        if (i == k) continue;
        const double f = m[i][k] / m[k][k];
        for (int j = k; j < kNum; ++j) m[i][j] -= f * m[k][j];
        w[i] -= f * w[k];
      }
    }
    for (int i = 0; i < kNum && feasible; ++i) {
      w[i] /= m[i][i];
      feasible = w[i] >= 0 && std::isfinite(w[i]);
    }
    if (!feasible) continue;
    double error = 0;
    for (int i = 0; i < kNum; ++i) {
      for (int j = 0; j < kNum; ++j) error += w[i] * a[i][j] * w[j];
      error -= 2 * b[i] * w[i];
    }
    if (error < best_error) {
      best_error = error;
      best = w;
    }
  }
  if (std::isfinite(best_error)) weights_ = best;
}

}  // namespace bough
