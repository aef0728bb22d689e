#include "kernels/attention.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/online_softmax.h"
#include "kernels/cpu/paged_kv.h"
#include "kernels/cpu/parallel.h"

namespace bough::cpu {
namespace {

// The nodes that stand for something, by how many others hold their sequences. CHECKs what
// attention.h says about them.
std::vector<std::vector<SharedNode>> ForestLevels(const PagedAttentionParams& p) {
  std::vector<std::vector<SharedNode>> levels;
  std::vector<SharedNode> around;  // of the node at hand, outermost first
  std::vector<int32_t> covered(p.num_nodes == 0 ? 0 : p.num_seqs, 0);
  for (int n = 0; n < p.num_nodes; ++n) {
    const SharedNode node = p.nodes[n];
    if (node.seq_begin == node.seq_end || node.key_begin == node.key_end) continue;
    CHECK(0 <= node.seq_begin && node.seq_begin < node.seq_end && node.seq_end <= p.num_seqs)
        << "node " << n << ": sequences [" << node.seq_begin << ", " << node.seq_end << ") of "
        << p.num_seqs;
    CHECK(node.key_begin < node.key_end && node.key_begin % p.block_size == 0 &&
          node.key_end % p.block_size == 0)
        << "node " << n << ": keys [" << node.key_begin << ", " << node.key_end << ")";
    while (!around.empty() && around.back().seq_end <= node.seq_begin) around.pop_back();
    CHECK(around.empty() || node.seq_end <= around.back().seq_end)
        << "node " << n << " holds some of another's sequences and some others";
    CHECK_LT(around.size(), size_t{kMaxForestDepth}) << "nodes around node " << n;
    for (int s = node.seq_begin; s < node.seq_end; ++s) {
      CHECK_EQ(covered[s], node.key_begin) << "node " << n << ", sequence " << s;
      CHECK_LE(node.key_end, p.seqlens_kv[s] - (p.cu_seqlens_q[s + 1] - p.cu_seqlens_q[s]))
          << "node " << n << " reaches into the queries of sequence " << s;
      covered[s] = node.key_end;
    }
    if (levels.size() == around.size()) levels.emplace_back();
    levels[around.size()].push_back(node);
    around.push_back(node);
  }
  for (int s = 0; s < static_cast<int>(covered.size()); ++s) {
    CHECK_EQ(covered[s], p.own_begin[s]) << "sequence " << s;
  }
  return levels;
}

// Up to kTileRows of one sequence's rows on one KV head.
struct OwnTask {
  int seq, kv_head, row_begin, row_end;
};

template <typename T>
class Attention {
 public:
  explicit Attention(const PagedAttentionParams& p)
      : p_(p),
        group_(p.num_heads / p.num_kv_heads),
        num_tokens_(p.cu_seqlens_q[p.num_seqs] - p.cu_seqlens_q[0]),
        rows_(int64_t{num_tokens_} * p.num_heads) {}

  // First the shared nodes, outermost first, then the sequences' own keys. A row's keys are merged
  // onto the state that the ones before left behind, block after block: so the results with nodes
  // and without are equal to the last bit.
  void Run() {
    const int num_kv_heads = p_.num_kv_heads;
    const double flops = NumFlops();
    for (const std::vector<SharedNode>& level : ForestLevels(p_)) {
      ParallelFor(static_cast<int>(level.size()) * num_kv_heads, flops,
                  [&](int i) { AttendNode(level[i / num_kv_heads], i % num_kv_heads); });
    }
    const std::vector<OwnTask> tasks = OwnTasks();
    ParallelFor(static_cast<int>(tasks.size()), flops, [&](int i) { AttendOwn(tasks[i]); });
  }

 private:
  // Of the tokens from `token` on, in the batch's order, the group's query heads of each. Rows of one
  // KV head stand together: [num_kv_heads, num_tokens, group].
  AttendingRow* Rows(int token, int kv_head) {
    return rows_.data() +
           (int64_t{kv_head} * num_tokens_ + token - p_.cu_seqlens_q[0]) * int64_t{group_};
  }
  int NumRows(int seq_begin, int seq_end) const {
    return (p_.cu_seqlens_q[seq_end] - p_.cu_seqlens_q[seq_begin]) * group_;
  }
  int OwnBegin(int seq) const { return p_.num_nodes == 0 ? 0 : p_.own_begin[seq]; }

  // Rows [row_begin, row_end) of a sequence.
  void StartRows(int seq, int kv_head, int row_begin, int row_end) {
    const int first_token = p_.cu_seqlens_q[seq];
    const int first_position = p_.seqlens_kv[seq] - (p_.cu_seqlens_q[seq + 1] - first_token);
    AttendingRow* rows = Rows(first_token, kv_head);
    for (int r = row_begin; r < row_end; ++r) {
      const int64_t token = first_token + r / group_;
      const int64_t head = kv_head * group_ + r % group_;
      rows[r].q = static_cast<const float*>(p_.q) + token * p_.q_stride + head * p_.head_dim;
      rows[r].o = static_cast<float*>(p_.o) + (token * p_.num_heads + head) * p_.head_dim;
      rows[r].end = first_position + r / group_ + 1;
      if (p_.sliding_window > 0) rows[r].begin = std::max(0, rows[r].end - p_.sliding_window);
      Start(rows[r], p_.head_dim);
    }
  }

  PagedKv<T> Kv(int seq, int kv_head) const {
    return {.k_cache = static_cast<const T*>(p_.k_cache),
            .v_cache = static_cast<const T*>(p_.v_cache),
            .block_table = p_.block_tables + int64_t{seq} * p_.max_blocks,
            .kv_head = kv_head,
            .num_kv_heads = p_.num_kv_heads,
            .block_size = p_.block_size,
            .head_dim = p_.head_dim};
  }

  // Keys outside, rows inside: the keys pass once, from the first sequence's blocks.
  void AttendNode(const SharedNode& node, int kv_head) {
    for (int s = node.seq_begin; node.key_begin == 0 && s < node.seq_end; ++s) {
      StartRows(s, kv_head, 0, NumRows(s, s + 1));
    }
    AttendKeys(node.seq_begin, kv_head, node.key_begin, node.key_end,
               Rows(p_.cu_seqlens_q[node.seq_begin], kv_head),
               NumRows(node.seq_begin, node.seq_end));
  }

  void AttendOwn(const OwnTask& task) {
    const int own_begin = OwnBegin(task.seq);
    if (own_begin == 0) StartRows(task.seq, task.kv_head, task.row_begin, task.row_end);
    AttendingRow* rows = Rows(p_.cu_seqlens_q[task.seq], task.kv_head) + task.row_begin;
    const int num_rows = task.row_end - task.row_begin;
    // Queries ascend, so the last row's keys end last.
    AttendKeys(task.seq, task.kv_head, own_begin, rows[num_rows - 1].end, rows, num_rows);
    const float v_scale = KvScaleOf(p_, task.kv_head).v;
    for (int r = 0; r < num_rows; ++r) Finish(rows[r], p_.head_dim, v_scale);
  }

  // Keys [begin, end), through the blocks of `seq`.
  void AttendKeys(int seq, int kv_head, int begin, int end, AttendingRow* rows, int num_rows) {
    int first = end;
    for (int r = 0; r < num_rows; ++r) first = std::min(first, std::max(begin, rows[r].begin));
    const float scale = p_.sm_scale * KvScaleOf(p_, kv_head).k;
    Kv(seq, kv_head).ForEachChunk(first, end, [&](const auto& chunk) {
      for (int r = 0; r < num_rows; r += kTileRows) {
        Attend(rows + r, std::min(kTileRows, num_rows - r), chunk, p_.head_dim, scale);
      }
    });
  }

  std::vector<OwnTask> OwnTasks() const {
    std::vector<OwnTask> tasks;
    for (int s = 0; s < p_.num_seqs; ++s) {
      const int num_rows = NumRows(s, s + 1);
      for (int kv_head = 0; kv_head < p_.num_kv_heads; ++kv_head) {
        for (int row = 0; row < num_rows; row += kTileRows) {
          tasks.push_back({s, kv_head, row, std::min(row + kTileRows, num_rows)});
        }
      }
    }
    return tasks;
  }

  double NumFlops() const {
    double pairs = 0;
    for (int s = 0; s < p_.num_seqs; ++s) {
      pairs += 1.0 * (p_.cu_seqlens_q[s + 1] - p_.cu_seqlens_q[s]) * p_.seqlens_kv[s];
    }
    return 4.0 * pairs * p_.num_heads * p_.head_dim;
  }

  const PagedAttentionParams& p_;
  const int group_;
  const int num_tokens_;
  std::vector<AttendingRow> rows_;
};

}  // namespace

void PagedAttention(const PagedAttentionParams& p) {
  if (p.num_seqs == 0) return;
  CheckAttentionShapes(p);
  switch (p.kv_dtype) {
    case DType::kF32:
      return Attention<float>(p).Run();
    case DType::kBF16:
      return Attention<BF16>(p).Run();
    case DType::kF8E4M3:
      return Attention<E4M3>(p).Run();
    default:
      CHECK(false) << "the cache is " << Name(p.kv_dtype) << ", the CPU takes f32, bf16 or f8_e4m3";
  }
}

}  // namespace bough::cpu
