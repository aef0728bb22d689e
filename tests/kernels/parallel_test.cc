#include "kernels/cpu/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <thread>
#include <vector>

namespace bough::cpu {
namespace {

constexpr double kManyFlops = 1e9;

class ParallelForOnThreads : public testing::TestWithParam<int> {
 protected:
  void SetUp() override { SetNumThreads(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Threads, ParallelForOnThreads, testing::Values(1, 2, 3, 8));

TEST_P(ParallelForOnThreads, RunsEachTaskOnce) {
  EXPECT_EQ(NumThreads(), GetParam());
  for (int num_tasks : {0, 1, 2, 7, 8, 9, 1000}) {
    std::vector<std::atomic<int>> runs(num_tasks);
    ParallelFor(num_tasks, kManyFlops, [&](int i) { ++runs[i]; });
    for (int i = 0; i < num_tasks; ++i) ASSERT_EQ(runs[i], 1) << i << " of " << num_tasks;
  }
}

// Plain ints: the caller must see what helpers wrote, and a late helper must not touch a later
// loop.
TEST_P(ParallelForOnThreads, HandsResultsBackLoopAfterLoop) {
  for (int loop = 0; loop < 3000; ++loop) {
    std::vector<int> squares(1 + loop % 40);
    ParallelFor(static_cast<int>(squares.size()), kManyFlops, [&](int i) { squares[i] = i * i; });
    for (int i = 0; i < static_cast<int>(squares.size()); ++i) ASSERT_EQ(squares[i], i * i);
  }
}

TEST_P(ParallelForOnThreads, ServesConcurrentCallers) {
  std::vector<std::thread> callers;
  std::atomic<int64_t> total = 0;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int loop = 0; loop < 300; ++loop) {
        int sums[16] = {};
        ParallelFor(16, kManyFlops, [&](int i) { sums[i] = i; });
        for (int sum : sums) total += sum;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(total, 4 * 300 * 120);
}

TEST(ParallelFor, RunsSmallWorkOnTheCallerInOrder) {
  SetNumThreads(4);
  std::vector<int> order;
  ParallelFor(5, kMinParallelFlops - 1, [&](int i) { order.push_back(i); });
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4}));
}

TEST(ParallelFor, UsesItsHelpers) {
  SetNumThreads(2);
  std::atomic<int> num_inside = 0;
  // Two tasks that wait for each other end only if two threads run them.
  ParallelFor(2, kManyFlops, [&](int) {
    ++num_inside;
    while (num_inside < 2) std::this_thread::yield();
  });
  EXPECT_EQ(num_inside, 2);
}

}  // namespace
}  // namespace bough::cpu
