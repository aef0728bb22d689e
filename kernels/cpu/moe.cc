#include "kernels/moe.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/check.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"

namespace bough::cpu {
namespace {

// A counting sort: count each expert's rows, sum the counts to offsets, deal the rows out.
void AssignRows(const MoeRouteParams& p) {
  const int num_local = p.expert_end - p.expert_begin;
  const int num_pairs = p.num_tokens * p.top_k;
  const auto is_local = [&](int e) { return p.expert_begin <= e && e < p.expert_end; };

  std::fill_n(p.expert_offsets, num_local + 1, 0);
  for (int i = 0; i < num_pairs; ++i) {
    const int e = p.expert_ids[i];
    if (is_local(e)) ++p.expert_offsets[e - p.expert_begin + 1];
  }
  for (int e = 0; e < num_local; ++e) p.expert_offsets[e + 1] += p.expert_offsets[e];

  std::vector<int32_t> next_row(p.expert_offsets, p.expert_offsets + num_local);
  for (int i = 0; i < num_pairs; ++i) {
    const int e = p.expert_ids[i];
    p.row_of_pair[i] = is_local(e) ? next_row[e - p.expert_begin]++ : -1;
  }
}

}  // namespace

void MoeRoute(const MoeRouteParams& p) {
  CHECK_GE(p.expert_end, p.expert_begin);
  AssignRows(p);
  // A copied byte takes about the time of one FLOP.
  ParallelFor(p.num_tokens, 1.0 * p.num_tokens * p.top_k * p.row_bytes, [&](int t) {
    for (int64_t pair = int64_t{t} * p.top_k; pair < int64_t{t + 1} * p.top_k; ++pair) {
      const int64_t row = p.row_of_pair[pair];
      if (row < 0) continue;
      std::memcpy(static_cast<char*>(p.rows) + row * p.row_bytes,
                  static_cast<const char*>(p.x) + t * p.row_bytes, p.row_bytes);
      if (p.x_scale != nullptr) p.row_scale[row] = p.x_scale[t];
    }
  });
}

void MoeCombine(const MoeCombineParams& p) {
  CHECK(p.dtype == DType::kF32) << "is " << Name(p.dtype) << ", the CPU takes f32";
  ParallelFor(p.num_tokens, 2.0 * p.num_tokens * p.top_k * p.hidden_size, [&](int t) {
    const int64_t pair = int64_t{t} * p.top_k;
    const ExpertRows rows = {static_cast<const float*>(p.rows), p.row_of_pair + pair,
                             p.expert_weights + pair, p.top_k, p.hidden_size};
    float* out = static_cast<float*>(p.out) + int64_t{t} * p.hidden_size;
    ForEachVector(p.hidden_size,
                  [&](int i, int count) { StorePartial(out + i, rows.SumAt(i, count), count); });
  });
}

}  // namespace bough::cpu
