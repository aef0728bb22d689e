#include "kernels/attention.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/online_softmax.h"
#include "kernels/cpu/paged_kv.h"
#include "kernels/cpu/parallel.h"

namespace bough::cpu {
namespace {

// Up to kTileRows of one sequence's rows on one KV head. Row r of the sequence is query r / group
// of the head's query head r % group, where group = num_heads / num_kv_heads.
struct Task {
  int seq;
  int kv_head;
  int row_begin, row_end;
};

std::vector<Task> SplitIntoTasks(const PagedAttentionParams& p) {
  std::vector<Task> tasks;
  const int group = p.num_heads / p.num_kv_heads;
  for (int s = 0; s < p.num_seqs; ++s) {
    const int num_rows = (p.cu_seqlens_q[s + 1] - p.cu_seqlens_q[s]) * group;
    for (int kv_head = 0; kv_head < p.num_kv_heads; ++kv_head) {
      for (int row = 0; row < num_rows; row += kTileRows) {
        tasks.push_back({s, kv_head, row, std::min(row + kTileRows, num_rows)});
      }
    }
  }
  return tasks;
}

template <typename T>
void RunTask(const PagedAttentionParams& p, const Task& task) {
  const int group = p.num_heads / p.num_kv_heads;
  const int first_token = p.cu_seqlens_q[task.seq];
  const int num_q = p.cu_seqlens_q[task.seq + 1] - first_token;
  const int num_rows = task.row_end - task.row_begin;

  AttendingRow rows[kTileRows];
  for (int r = 0; r < num_rows; ++r) {
    const int query = (task.row_begin + r) / group;
    const int head = task.kv_head * group + (task.row_begin + r) % group;
    const int64_t token = first_token + query;
    const int position = p.seqlens_kv[task.seq] - num_q + query;
    rows[r].q = static_cast<const float*>(p.q) + token * p.q_stride + head * p.head_dim;
    rows[r].o = static_cast<float*>(p.o) + (token * p.num_heads + head) * p.head_dim;
    rows[r].begin = p.sliding_window > 0 ? std::max(0, position + 1 - p.sliding_window) : 0;
    rows[r].end = position + 1;
    Start(rows[r], p.head_dim);
  }
  const PagedKv<T> kv{.k_cache = static_cast<const T*>(p.k_cache),
                      .v_cache = static_cast<const T*>(p.v_cache),
                      .block_table = p.block_tables + int64_t{task.seq} * p.max_blocks,
                      .kv_head = task.kv_head,
                      .num_kv_heads = p.num_kv_heads,
                      .block_size = p.block_size,
                      .head_dim = p.head_dim};
  const KvScale scale = KvScaleOf(p, task.kv_head);
  // Queries ascend, so the first row's range begins first and the last row's ends last.
  kv.ForEachChunk(rows[0].begin, rows[num_rows - 1].end, [&](const KeyChunk<T>& chunk) {
    Attend(rows, num_rows, chunk, p.head_dim, p.sm_scale * scale.k);
  });
  for (int r = 0; r < num_rows; ++r) Finish(rows[r], p.head_dim, scale.v);
}

double NumFlops(const PagedAttentionParams& p) {
  double pairs = 0;
  for (int s = 0; s < p.num_seqs; ++s) {
    pairs += 1.0 * (p.cu_seqlens_q[s + 1] - p.cu_seqlens_q[s]) * p.seqlens_kv[s];
  }
  return 4.0 * pairs * p.num_heads * p.head_dim;
}

}  // namespace

void PagedAttention(const PagedAttentionParams& p) {
  if (p.num_seqs == 0) return;
  CheckAttentionShapes(p);
  const std::vector<Task> tasks = SplitIntoTasks(p);
  const int num_tasks = static_cast<int>(tasks.size());
  DispatchKvDType(p.kv_dtype, [&]<typename T>() {
    ParallelFor(num_tasks, NumFlops(p), [&](int i) { RunTask<T>(p, tasks[i]); });
  });
}

}  // namespace bough::cpu
