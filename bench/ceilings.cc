#include "bench/ceilings.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <vector>

#include "common/check.h"
#include "kernels/cpu/parallel.h"

namespace bough {
namespace {

using F32x8 = float __attribute__((vector_size(32)));

constexpr double kManyFlops = 1e9;  // always worth threads

double SecondsOf(const std::function<void()>& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

double BestSeconds(const std::function<void(int)>& run) {
  double best = 1e9, sum = 0;
  for (int i = 0; i < 5 || (sum < 0.4 && i < 2000); ++i) {
    const double seconds = SecondsOf([&] { run(i); });
    best = std::min(best, seconds);
    sum += seconds;
  }
  return best;
}

// All threads, 12 chains of fused multiply-adds each.
double MeasureFmaGflops() {
  constexpr int kChains = 12, kSteps = 20'000, kTasksPerThread = 100;
  const int num_tasks = kTasksPerThread * cpu::NumThreads();
  std::vector<float> sink(num_tasks);
  const double seconds = BestSeconds([&](int run) {
    cpu::ParallelFor(num_tasks, kManyFlops, [&](int task) {
      F32x8 acc[kChains], x = {}, y = {};
      x += 0.999f + static_cast<float>(run) * 1e-9f;
      y += 1e-3f;
      for (F32x8& a : acc) a = x;
      for (int i = 0; i < kSteps; ++i) {
        for (F32x8& a : acc) a = a * x + y;
      }
      F32x8 sum = {};
      for (F32x8& a : acc) sum += a;
      sink[task] = sum[0];
    });
  });
  CHECK_NE(std::accumulate(sink.begin(), sink.end(), 0.0f), 0) << "keeps the loop";
  return 2.0 * 8 * kChains * kSteps * num_tasks / seconds * 1e-9;
}

// All threads read a buffer larger than the caches, 1 MiB a task.
double MeasureReadGbps() {
  constexpr int64_t kTaskFloats = 1 << 18;
  const int num_tasks = kWorkingSetBytes / (kTaskFloats * sizeof(float));
  const std::vector<float> buffer(num_tasks * kTaskFloats, 1.0f);
  std::vector<float> sink(num_tasks);
  const double seconds = BestSeconds([&](int) {
    cpu::ParallelFor(num_tasks, kManyFlops, [&](int task) {
      F32x8 sum[8] = {};
      const float* p = &buffer[task * kTaskFloats];
      for (int64_t i = 0; i < kTaskFloats; i += 64) {
        for (int j = 0; j < 8; ++j) {
          F32x8 v;
          std::memcpy(&v, p + i + j * 8, sizeof(v));
          sum[j] += v;
        }
      }
      for (int j = 1; j < 8; ++j) sum[0] += sum[j];
      sink[task] = sum[0][0];
    });
  });
  CHECK_EQ(sink[0], kTaskFloats / 8.0f) << "keeps the loop";
  return static_cast<double>(buffer.size()) * sizeof(float) / seconds * 1e-9;
}

}  // namespace bough
