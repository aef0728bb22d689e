#include <algorithm>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cpu/online_softmax.h"
#include "kernels/cpu/paged_kv.h"
#include "kernels/cpu/parallel.h"

namespace bough::cpu {
namespace {

template <typename T>
class Bifurcated {
 public:
  explicit Bifurcated(const BifurcatedAttentionParams& p)
      : p_(p),
        heads_per_kv_(p.num_heads / p.num_kv_heads),
        rows_(int64_t{p.num_seqs} * p.num_heads) {}

  // Two passes, each split among threads by what they read: first the groups' shared parts, then
  // the sequences' own. A row's own part is merged onto the state that its shared part left behind,
  // block after block, which is PagedAttention's order: the results are equal to the last bit.
  void Run() {
    const int num_kv_heads = p_.num_kv_heads;
    const int num_shared = p_.num_groups * num_kv_heads, num_own = p_.num_seqs * num_kv_heads;
    const double flops = NumFlops();
    ParallelFor(num_shared, flops,
                [&](int i) { AttendShared(i / num_kv_heads, i % num_kv_heads); });
    ParallelFor(num_own, flops, [&](int i) { AttendOwn(i / num_kv_heads, i % num_kv_heads); });
  }

 private:
  // Rows of one KV head stand together: [num_kv_heads, num_seqs, heads_per_kv].
  AttendingRow* Rows(int seq, int kv_head) {
    return rows_.data() + (int64_t{kv_head} * p_.num_seqs + seq) * heads_per_kv_;
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

  void StartRows(int seq, int kv_head) {
    AttendingRow* rows = Rows(seq, kv_head);
    for (int h = 0; h < heads_per_kv_; ++h) {
      const int64_t head = kv_head * heads_per_kv_ + h;
      rows[h].q = static_cast<const float*>(p_.q) + int64_t{seq} * p_.q_stride + head * p_.head_dim;
      rows[h].o = static_cast<float*>(p_.o) + (int64_t{seq} * p_.num_heads + head) * p_.head_dim;
      rows[h].end = p_.seqlens_kv[seq];
      Start(rows[h], p_.head_dim);
    }
  }

  // Keys outside, rows inside: the prefix passes once, from the first sequence's blocks.
  void AttendShared(int group, int kv_head) {
    const int begin = p_.group_start[group], end = p_.group_start[group + 1];
    for (int seq = begin; seq < end; ++seq) StartRows(seq, kv_head);
    if (begin == end) return;
    AttendingRow* rows = Rows(begin, kv_head);
    const int num_rows = (end - begin) * heads_per_kv_;
    const float scale = p_.sm_scale * KvScaleOf(p_, kv_head).k;
    Kv(begin, kv_head).ForEachChunk(0, p_.prefix_len[group], [&](const KeyChunk<T>& chunk) {
      for (int r = 0; r < num_rows; r += kTileRows) {
        Attend(rows + r, std::min(kTileRows, num_rows - r), chunk, p_.head_dim, scale);
      }
    });
  }

  void AttendOwn(int seq, int kv_head) {
    const int group = static_cast<int>(
        std::upper_bound(p_.group_start, p_.group_start + p_.num_groups, seq) - p_.group_start - 1);
    AttendingRow* rows = Rows(seq, kv_head);
    const KvScale scale = KvScaleOf(p_, kv_head);
    const auto attend = [&](const KeyChunk<T>& chunk) {
      for (int r = 0; r < heads_per_kv_; r += kTileRows) {
        Attend(rows + r, std::min(kTileRows, heads_per_kv_ - r), chunk, p_.head_dim,
               p_.sm_scale * scale.k);
      }
    };
    Kv(seq, kv_head).ForEachChunk(p_.prefix_len[group], p_.seqlens_kv[seq], attend);
    for (int h = 0; h < heads_per_kv_; ++h) Finish(rows[h], p_.head_dim, scale.v);
  }

  double NumFlops() const {
    double keys = 0;
    for (int s = 0; s < p_.num_seqs; ++s) keys += p_.seqlens_kv[s];
    return 4.0 * keys * p_.num_heads * p_.head_dim;
  }

  const BifurcatedAttentionParams& p_;
  const int heads_per_kv_;
  std::vector<AttendingRow> rows_;
};

void CheckGroups(const BifurcatedAttentionParams& p) {
  CHECK_EQ(p.group_start[0], 0);
  CHECK_EQ(p.group_start[p.num_groups], p.num_seqs) << "groups must cover all rows";
  for (int g = 0; g < p.num_groups; ++g) {
    CHECK_EQ(p.prefix_len[g] % p.block_size, 0) << "group " << g;
    for (int s = p.group_start[g]; s < p.group_start[g + 1]; ++s) {
      CHECK_LE(p.prefix_len[g], p.seqlens_kv[s]) << "sequence " << s;
    }
  }
}

}  // namespace

void BifurcatedAttention(const BifurcatedAttentionParams& p) {
  if (p.num_seqs == 0) return;
  CheckAttentionShapes(p);
  CheckGroups(p);
  DispatchKvDType(p.kv_dtype, [&]<typename T>() { Bifurcated<T>(p).Run(); });
}

}  // namespace bough::cpu
