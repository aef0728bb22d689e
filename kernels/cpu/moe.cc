#include "kernels/moe.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/check.h"
#include "kernels/cpu/parallel.h"

namespace bough::cpu {

void TopKGate(const TopKGateParams& p) {
  CHECK(1 <= p.top_k && p.top_k <= p.num_experts) << p.top_k << " of " << p.num_experts;
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    const float* logits = p.logits + t * p.num_experts;
    int32_t* ids = p.expert_ids + t * p.top_k;
    float* weights = p.expert_weights + t * p.top_k;
    for (int j = 0; j < p.top_k; ++j) {
      int best = -1;
      for (int e = 0; e < p.num_experts; ++e) {
        if (std::find(ids, ids + j, e) != ids + j) continue;
        if (best < 0 || logits[e] > logits[best]) best = e;
      }
      ids[j] = best;
    }
    float sum = 0;
    for (int j = 0; j < p.top_k; ++j) sum += weights[j] = std::exp(logits[ids[j]] - logits[ids[0]]);
    for (int j = 0; j < p.top_k; ++j) weights[j] /= sum;
  }
}

// A counting sort: count each expert's rows, sum the counts to offsets, deal the rows out.
void MoeRoute(const MoeRouteParams& p) {
  const int num_local = p.expert_end - p.expert_begin;
  const int num_pairs = p.num_tokens * p.top_k;
  CHECK_GE(num_local, 0);
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
    if (is_local(e)) p.row_tokens[p.row_of_pair[i]] = i / p.top_k;
  }
}

void MoeCombine(const MoeCombineParams& p) {
  CHECK(p.dtype == DType::kF32) << "is " << Name(p.dtype) << ", the CPU takes f32";
  ParallelFor(p.num_tokens, 2.0 * p.num_tokens * p.top_k * p.hidden_size, [&](int t) {
    float* out = static_cast<float*>(p.out) + int64_t{t} * p.hidden_size;
    std::fill_n(out, p.hidden_size, 0.0f);
    for (int64_t pair = int64_t{t} * p.top_k; pair < int64_t{t + 1} * p.top_k; ++pair) {
      if (p.row_of_pair[pair] < 0) continue;
      const float* row =
          static_cast<const float*>(p.rows) + int64_t{p.row_of_pair[pair]} * p.hidden_size;
      const float weight = p.expert_weights[pair];
      for (int i = 0; i < p.hidden_size; ++i) out[i] += weight * row[i];
    }
  });
}

}  // namespace bough::cpu
