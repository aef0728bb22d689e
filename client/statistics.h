// Figures of a sample of measurements.
#pragma once

#include <vector>

namespace bough::client {

// The value below which `fraction` of `sorted` lies, linear between neighbours (numpy's default). 0
// for an empty sample. REQUIRES: ascending; 0 <= fraction <= 1.
double Percentile(const std::vector<double>& sorted, double fraction);

struct Distribution {
  double mean = 0, std = 0, p50 = 0, p90 = 0, p99 = 0;
};
Distribution Describe(std::vector<double> sample);

}  // namespace bough::client
