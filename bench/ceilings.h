// What this machine can do at best, measured: the yardstick of every floor in bench/.
#pragma once

#include <cstdint>
#include <functional>

namespace bough {

// Larger than any last-level cache we run on: what passes over so much reads memory.
inline constexpr int64_t kWorkingSetBytes = int64_t{192} << 20;

// Best of at least 5 runs and 0.4 s. run(i) gets the run's number, to choose its copy of the data.
double BestSeconds(const std::function<void(int)>& run);

// All kernel threads (kernels/cpu/parallel.h): fused multiply-adds on registers, in GFLOP/s; and a
// read of a buffer of kWorkingSetBytes, in GB/s.
double MeasureFmaGflops();
double MeasureReadGbps();

}  // namespace bough
