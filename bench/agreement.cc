#include "bench/agreement.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/check.h"
#include "kernels/cpu/parallel.h"

namespace bough {
namespace {

constexpr double kFlopsPerLogit = 40;  // two exponentials

double Mean(const std::vector<double>& values) {
  CHECK(!values.empty());
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

struct Position {
  double reference_nll, candidate_nll, kld;
  bool same_top;
};

Position Compare(const float* p_logits, const float* q_logits, int64_t vocab_size, int32_t next) {
  const int64_t p_top = std::max_element(p_logits, p_logits + vocab_size) - p_logits;
  const int64_t q_top = std::max_element(q_logits, q_logits + vocab_size) - q_logits;
  const double p_max = p_logits[p_top], q_max = q_logits[q_top];
  double p_sum = 0, q_sum = 0, weighted = 0;  // weighted: sum of p_sum * p * (log-odds difference)
  for (int64_t i = 0; i < vocab_size; ++i) {
    const double p = std::exp(p_logits[i] - p_max);
    p_sum += p;
    q_sum += std::exp(q_logits[i] - q_max);
    weighted += p * (p_logits[i] - q_logits[i]);
  }
  const double p_norm = p_max + std::log(p_sum), q_norm = q_max + std::log(q_sum);
  return {p_norm - p_logits[next], q_norm - q_logits[next], weighted / p_sum - p_norm + q_norm,
          p_top == q_top};
}

}  // namespace

void Agreement::Add(std::span<const float> reference, std::span<const float> candidate,
                    std::span<const int32_t> next) {
  CHECK_EQ(reference.size(), candidate.size());
  const int64_t num_rows = static_cast<int64_t>(next.size());
  const int64_t vocab_size = static_cast<int64_t>(reference.size()) / num_rows;
  CHECK_EQ(static_cast<int64_t>(reference.size()), num_rows * vocab_size);
  std::vector<Position> positions(num_rows);
  cpu::ParallelFor(
      static_cast<int>(num_rows), num_rows * vocab_size * kFlopsPerLogit, [&](int row) {
        positions[row] = Compare(reference.data() + row * vocab_size,
                                 candidate.data() + row * vocab_size, vocab_size, next[row]);
      });
  for (const Position& at : positions) {
    CHECK(std::isfinite(at.kld)) << "logits that are no numbers";
    reference_nll_.push_back(at.reference_nll);
    nll_delta_.push_back(at.candidate_nll - at.reference_nll);
    kld_.push_back(at.kld);
    probability_delta_.push_back(std::exp(-at.candidate_nll) - std::exp(-at.reference_nll));
    num_same_top_ += at.same_top;
  }
}

double Agreement::ReferenceNll() const { return Mean(reference_nll_); }
double Agreement::PplRatio() const { return std::exp(Mean(nll_delta_)); }

double Agreement::PplRatioCi95() const {
  const double mean = Mean(nll_delta_);
  double squares = 0;
  for (double delta : nll_delta_) squares += (delta - mean) * (delta - mean);
  const double n = static_cast<double>(nll_delta_.size());
  return 1.96 * std::sqrt(squares / n / n) * PplRatio();
}

double Agreement::MeanKld() const { return Mean(kld_); }

double Agreement::KldQuantile(double share) const {
  std::vector<double> sorted = kld_;
  const auto at =
      sorted.begin() + static_cast<int64_t>(share * static_cast<double>(sorted.size() - 1));
  std::nth_element(sorted.begin(), at, sorted.end());
  return *at;
}

double Agreement::SameTop() const {
  return static_cast<double>(num_same_top_) / static_cast<double>(num_positions());
}

double Agreement::RmsDelta() const {
  double squares = 0;
  for (double delta : probability_delta_) squares += delta * delta;
  return std::sqrt(squares / static_cast<double>(num_positions()));
}

}  // namespace bough
