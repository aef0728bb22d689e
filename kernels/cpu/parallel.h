// When a loop is worth OpenMP's threads. Loops split outputs among threads, never a sum, so results
// do not depend on the number of threads.
#pragma once

#include <omp.h>

namespace bough::cpu {

// Waking the threads costs a few microseconds, about what one core needs for this many FLOPs.
constexpr double kMinParallelFlops = 5e5;

inline bool WorthThreads(double flops) {
  return flops >= kMinParallelFlops && omp_get_max_threads() > 1;
}

}  // namespace bough::cpu
