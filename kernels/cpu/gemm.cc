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

// The task's outputs; `w` points to the first of its weights' rows.
template <typename W>
void RunTask(const Task& t, const GroupedGemmParams& p, const float* x, const W* w) {
  const float* rows[kTaskRows];
  for (int r = t.row_begin; r < t.row_end; ++r) rows[r - t.row_begin] = x + int64_t{r} * p.k;
  float* y = static_cast<float*>(p.y) + int64_t{t.row_begin} * p.n + t.n_begin;
  Dot(rows, t.row_end - t.row_begin, w, p.k, t.n_end - t.n_begin, p.k, y, p.n);
}

template <typename W>
void Run(const GroupedGemmParams& p) {
  const std::vector<Task> tasks = SplitIntoTasks(p);
  ParallelFor(static_cast<int>(tasks.size()), 2.0 * p.num_rows * p.n * p.k, [&](int i) {
    const Task& t = tasks[i];
    const int64_t first_output = int64_t{t.expert} * p.n + t.n_begin;
    RunTask(t, p, static_cast<const float*>(p.x), static_cast<const W*>(p.w) + first_output * p.k);
  });
}

std::vector<float> Widen(const uint8_t* x, int64_t size) {
  std::vector<float> wide(size);
  for (int64_t i = 0; i < size; ++i) wide[i] = E4M3ToFloat(x[i]);
  return wide;
}

// The same products on rows that were widened to f32 first, and then the scales.
void RunF8(const GroupedGemmParams& p) {
  CHECK(p.x_scale != nullptr && p.w_scale != nullptr) << "f8_e4m3 comes with scales";
  const int64_t num_rows = p.expert_offsets[p.num_experts];
  const std::vector<float> x = Widen(static_cast<const uint8_t*>(p.x), num_rows * p.k);
  const std::vector<Task> tasks = SplitIntoTasks(p);
  ParallelFor(static_cast<int>(tasks.size()), 2.0 * num_rows * p.n * p.k, [&](int i) {
    const Task& t = tasks[i];
    const int64_t first_output = int64_t{t.expert} * p.n + t.n_begin;
    const std::vector<float> w = Widen(static_cast<const uint8_t*>(p.w) + first_output * p.k,
                                       int64_t{t.n_end - t.n_begin} * p.k);
    RunTask(t, p, x.data(), w.data());
    for (int64_t r = t.row_begin; r < t.row_end; ++r) {
      float* y = static_cast<float*>(p.y) + r * p.n;
      const float* w_scale = p.w_scale + int64_t{t.expert} * p.n;
      for (int n = t.n_begin; n < t.n_end; ++n) y[n] *= p.x_scale[r] * w_scale[n];
    }
  });
}

}  // namespace

void GroupedGemm(const GroupedGemmParams& p) {
  CHECK(p.out_dtype == DType::kF32) << "y is " << Name(p.out_dtype) << ", the CPU gives f32";
  CHECK(p.num_experts >= 0 && p.num_rows >= 0 && p.n >= 0 && p.k >= 0);
  if (p.num_rows == 0 || p.n == 0) return;
  CHECK_EQ(p.expert_offsets[0], 0);
  CHECK_LE(p.expert_offsets[p.num_experts], p.num_rows);
  if (p.dtype == DType::kF8E4M3 && p.w_dtype == DType::kF8E4M3) return RunF8(p);
  CHECK(p.dtype == DType::kF32) << "x is " << Name(p.dtype) << " and w " << Name(p.w_dtype)
                                << ", the CPU takes f32 rows, or both f8_e4m3";
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
  const int32_t one_expert[] = {0, p.m};
  GroupedGemm({.x = p.x,
               .x_scale = p.x_scale,
               .w = p.w,
               .w_scale = p.w_scale,
               .expert_offsets = one_expert,
               .y = p.y,
               .num_experts = 1,
               .num_rows = p.m,
               .n = p.n,
               .k = p.k,
               .dtype = p.dtype,
               .w_dtype = p.w_dtype,
               .out_dtype = p.out_dtype});
}

}  // namespace bough::cpu
