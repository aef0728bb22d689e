#include "router/coefficients.h"

#include <algorithm>
#include <cmath>

namespace bough::router {
namespace {

constexpr double kFade = 0.999;          // per prompt: half of the weight lies on the last 700
constexpr double kFadeSlowness = 0.995;  // per prompt of the group
constexpr double kPriorPrompts = 10;     // prompts of ordinary speed that a group starts with
// Pull of each weight towards its last estimate, relative to its feature's own weight: keeps weights
// still that recent prompts cannot tell apart.
constexpr double kRidge = 1e-3;
// Coordinate descent starts at the last solution, which one prompt hardly moves.
constexpr int kSweeps = 4;
constexpr double kBusySeconds = 30;  // time constant of BusyShare
constexpr double kAnswers = 200;     // answers that MeanAnswer remembers

}  // namespace

void PrefillFit::Add(int group, double uncached, double cached, double rows, double seconds) {
  if (!(seconds > 0) || uncached <= 0) return;
  Slowness& own = slowness_[group];
  double slowness = 1;
  if (num_prompts_ >= kMinPrompts) {
    const double ratio = seconds / common().Seconds(uncached, cached, rows);
    own.sum = kFadeSlowness * own.sum + std::log(std::clamp(ratio, 0.1, 10.0));
    own.weight = kFadeSlowness * own.weight + 1;
    slowness = std::exp(own.sum / (own.weight + kPriorPrompts));
  }
  // The common fit learns what a group of ordinary speed would have taken. Divided by that, so that each
  // prompt's relative error counts the same: y = 1.
  const double y = seconds / slowness;
  const Vector x = {1 / y, uncached / y, uncached * (cached + uncached / 2) / y,
                    uncached * rows / y};
  for (int i = 0; i < kNum; ++i) {
    for (int j = 0; j < kNum; ++j) a_[i][j] = kFade * a_[i][j] + x[i] * x[j];
    b_[i] = kFade * b_[i] + x[i];
  }
  ++num_prompts_;
  // min over w >= 0 of w' (A + R) w - 2 (b + R w_last)' w, one coordinate after the other.
  const Vector last = weights_;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    for (int i = 0; i < kNum; ++i) {
      if (a_[i][i] <= 0) continue;
      double rest = b_[i] + kRidge * a_[i][i] * last[i];
      for (int j = 0; j < kNum; ++j) rest -= j == i ? 0 : a_[i][j] * weights_[j];
      weights_[i] = std::max(0.0, rest / ((1 + kRidge) * a_[i][i]));
    }
  }
}

PrefillCost PrefillFit::cost(int group) const {
  if (num_prompts_ < kMinPrompts) return {};
  const Slowness& own = slowness_[group];
  const double f = std::exp(own.sum / (own.weight + kPriorPrompts));
  return {f * weights_[0], f * weights_[1], f * weights_[2], f * weights_[3]};
}

void BusyShare::Add(bool busy, double seconds) {
  const double keep = std::exp(-std::max(seconds, 0.0) / kBusySeconds);
  value_ = keep * value_ + (1 - keep) * (busy ? 1 : 0);
}

void MeanAnswer::Add(int num_tokens) {
  ++num_answers_;
  value_ += (num_tokens - value_) / std::min<double>(num_answers_, kAnswers);
}

}  // namespace bough::router
