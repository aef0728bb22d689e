#include "kernels/gemm.h"

#include <algorithm>
#include <vector>

#include "common/check.h"
#include "kernels/cpu/dot_tile.h"
#include "kernels/cpu/parallel.h"

namespace bough::cpu {
namespace {

// One task's outputs: its 24 rows of w (24 KiB of bf16 at k = 512) stay in L1 while its rows of x
// pass, and its 128 rows of x (256 KiB) stay in L2 for the next task.
constexpr int kTaskRows = 128;
constexpr int kTaskOutputs = 24;

struct Task {
  int expert;
  int row_begin, row_end;
  int n_begin, n_end;
};

std::vector<Task> SplitIntoTasks(const GroupedGemmParams& p) {
  std::vector<Task> tasks;
  for (int e = 0; e < p.num_experts; ++e) {
    const int end = p.expert_offsets[e + 1];
    for (int row = p.expert_offsets[e]; row < end; row += kTaskRows) {
      for (int n = 0; n < p.n; n += kTaskOutputs) {
        tasks.push_back(
            {e, row, std::min(row + kTaskRows, end), n, std::min(n + kTaskOutputs, p.n)});
      }
    }
  }
  return tasks;
}

template <typename W>
void Run(const GroupedGemmParams& p) {
  const float* x = static_cast<const float*>(p.x);
  const W* w = static_cast<const W*>(p.w);
  float* y = static_cast<float*>(p.y);
  const std::vector<Task> tasks = SplitIntoTasks(p);
  const int num_tasks = static_cast<int>(tasks.size());
  ParallelFor(num_tasks, 2.0 * p.num_rows * p.n * p.k, [&](int i) {
    const Task& t = tasks[i];
    const float* rows[kTaskRows];
    for (int r = t.row_begin; r < t.row_end; ++r) {
      rows[r - t.row_begin] = x + int64_t{p.x_rows ? p.x_rows[r] : r} * p.k;
    }
    Dot(rows, t.row_end - t.row_begin, w + (int64_t{t.expert} * p.n + t.n_begin) * p.k, p.k,
        t.n_end - t.n_begin, p.k, y + int64_t{t.row_begin} * p.n + t.n_begin, p.n);
  });
}

}  // namespace

void GroupedGemm(const GroupedGemmParams& p) {
  CHECK(p.dtype == DType::kF32) << "x is " << Name(p.dtype) << ", the CPU takes f32";
  CHECK(p.num_experts >= 0 && p.num_rows >= 0 && p.n >= 0 && p.k >= 0);
  if (p.num_rows == 0 || p.n == 0) return;
  CHECK_EQ(p.expert_offsets[0], 0);
  CHECK_EQ(p.expert_offsets[p.num_experts], p.num_rows);
  switch (p.w_dtype) {
    case DType::kF32:
      return Run<float>(p);
    case DType::kBF16:
      return Run<BF16>(p);
    default:
      CHECK(false) << "w is " << Name(p.w_dtype) << ", the CPU takes f32 or bf16";
  }
}

void Gemm(const GemmParams& p) {
  CHECK(p.out_dtype == DType::kF32) << "y is " << Name(p.out_dtype) << ", the CPU gives f32";
  const int32_t one_expert[] = {0, p.m};
  GroupedGemm({.x = p.x,
               .x_rows = nullptr,
               .w = p.w,
               .expert_offsets = one_expert,
               .y = p.y,
               .num_experts = 1,
               .num_rows = p.m,
               .n = p.n,
               .k = p.k,
               .dtype = p.dtype,
               .w_dtype = p.w_dtype});
}

}  // namespace bough::cpu
