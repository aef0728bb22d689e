#include "client/statistics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/check.h"

namespace bough::client {

double Percentile(const std::vector<double>& sorted, double fraction) {
  CHECK(fraction >= 0 && fraction <= 1) << fraction;
  if (sorted.empty()) return 0;
  const double rank = fraction * static_cast<double>(sorted.size() - 1);
  const size_t below = static_cast<size_t>(rank);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (rank - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

Distribution Describe(std::vector<double> sample) {
  if (sample.empty()) return {};
  std::sort(sample.begin(), sample.end());
  const double count = static_cast<double>(sample.size());
  Distribution d;
  d.mean = std::accumulate(sample.begin(), sample.end(), 0.0) / count;
  double squares = 0;
  for (double x : sample) squares += (x - d.mean) * (x - d.mean);
  d.std = std::sqrt(squares / count);
  d.p50 = Percentile(sample, 0.5);
  d.p90 = Percentile(sample, 0.9);
  d.p99 = Percentile(sample, 0.99);
  return d;
}

}  // namespace bough::client
