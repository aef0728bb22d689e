// Threads of the CPU kernels. Loops split outputs among threads, never a sum, so results do not
// depend on their number.
//
// Not OpenMP: its barrier waits for threads that have no work left to do, which on a machine with
// more runnable processes than cores costs a time slice (10 ms measured) per loop. Here the caller
// takes tasks too and waits only for tasks that a helper has begun.
#pragma once

#include <type_traits>

namespace bough::cpu {

// Threads per loop, the caller included; >= 1. Until it is set: one per core. Call it while no
// kernel runs.
void SetNumThreads(int num_threads);
int NumThreads();

// Waking a helper costs some microseconds, about what one core needs for this many FLOPs.
constexpr double kMinParallelFlops = 5e5;

// Runs run(context, begin, end) over disjoint ranges that cover [0, num_tasks). While another
// thread's loop holds the helpers, the caller runs everything itself. Loops do not nest.
void RunOnThreads(int num_tasks, void (*run)(const void* context, int begin, int end),
                  const void* context);

// body(i) for i in [0, num_tasks), on several threads if `flops`, the work of all, is worth it.
template <typename Body>
void ParallelFor(int num_tasks, double flops, const Body& body) {
  if (num_tasks <= 1 || flops < kMinParallelFlops || NumThreads() == 1) {
    for (int i = 0; i < num_tasks; ++i) body(i);
    return;
  }
  const auto run = [](const void* context, int begin, int end) {
    for (int i = begin; i < end; ++i) (*static_cast<const Body*>(context))(i);
  };
  RunOnThreads(num_tasks, run, &body);
}

}  // namespace bough::cpu
