// How much two models' predictions differ, over the same positions of the same text.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace bough {

// p = softmax of the reference's logits, q = of the candidate's.
class Agreement {
 public:
  // One row of logits a token of `next`, the token that does come next.
  void Add(std::span<const float> reference, std::span<const float> candidate,
           std::span<const int32_t> next);

  int64_t num_positions() const { return static_cast<int64_t>(kld_.size()); }
  double ReferenceNll() const;  // mean of -log p(next), nats
  double PplRatio() const;      // exp(mean of log p(next) - log q(next))
  double PplRatioCi95()
      const;               // half the width of its 95 % interval, positions taken as independent
  double MeanKld() const;  // of sum p log(p / q), nats
  double KldQuantile(double share) const;
  double SameTop() const;   // share of positions with the same likeliest token
  double RmsDelta() const;  // root of the mean of (q(next) - p(next))^2

 private:
  std::vector<double> reference_nll_, nll_delta_, kld_, probability_delta_;
  int64_t num_same_top_ = 0;
};

}  // namespace bough
