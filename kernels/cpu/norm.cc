// AddRmsNorm, alone and with the router behind it.
#include <algorithm>
#include <cmath>
#include <vector>

#include "common/check.h"
#include "kernels/cpu/dot_tile.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd.h"
#include "kernels/moe.h"

namespace bough::cpu {
namespace {

constexpr int kMaxExperts = 64;

void AddToResidual(const AddRmsNormParams& p, int64_t t, float* residual) {
  if (p.x == nullptr) return;
  const float* x = static_cast<const float*>(p.x);
  if (p.row_of_pair == nullptr) {
    for (int i = 0; i < p.hidden_size; ++i) residual[i] += x[t * p.hidden_size + i];
    return;
  }
  const ExpertRows rows = {x, p.row_of_pair + t * p.top_k, p.expert_weights + t * p.top_k, p.top_k,
                           p.hidden_size};
  ForEachVector(p.hidden_size, [&](int i, int count) {
    const F32x8 sum = rows.SumAt(i, count);
    for (int lane = 0; lane < count; ++lane) residual[i + lane] += sum[lane];
  });
}

float SumOfSquares(const float* x, int size) {
  F32x8 sum = {};
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) sum += Load(x + i) * Load(x + i);
  const F32x8 tail = LoadPartial(x + i, size - i);
  sum += tail * tail;
  return Sum(sum);
}

// Calls visit(t, row) with each token's normed row in f32, after it was stored.
template <typename Visit>
void NormRows(const AddRmsNormParams& p, double flops_per_element, Visit visit) {
  CHECK(p.dtype == DType::kF32) << "x is " << Name(p.dtype) << ", the CPU takes f32";
  const bool quantize = p.out_dtype == DType::kF8E4M3;
  CHECK(quantize || p.out_dtype == DType::kF32)
      << "out is " << Name(p.out_dtype) << ", the CPU gives f32 or f8_e4m3";
  ParallelFor(p.num_tokens, flops_per_element * p.num_tokens * p.hidden_size, [&](int t) {
    const int64_t offset = int64_t{t} * p.hidden_size;
    float* residual = static_cast<float*>(p.residual) + offset;
    AddToResidual(p, t, residual);
    const float mean_square = SumOfSquares(residual, p.hidden_size) / p.hidden_size;
    const float scale = 1.0f / std::sqrt(mean_square + p.eps);

    std::vector<float> unrounded(quantize ? p.hidden_size : 0);
    float* row = quantize ? unrounded.data() : static_cast<float*>(p.out) + offset;
    for (int i = 0; i < p.hidden_size; ++i) row[i] = residual[i] * scale * p.weight[i];
    if (quantize) {
      p.out_scale[t] = QuantizeRow(row, p.hidden_size, static_cast<uint8_t*>(p.out) + offset);
    }
    visit(t, row);
  });
}

// The top_k largest in descending order, ties to the lower expert, and their softmax. Of NaN logits
// the lower expert is taken, so the experts are distinct whatever the logits are.
void ChooseExperts(const float* logits, int num_experts, int top_k, int32_t* ids, float* weights) {
  for (int j = 0; j < top_k; ++j) {
    int best = -1;
    for (int e = 0; e < num_experts; ++e) {
      if (std::find(ids, ids + j, e) != ids + j) continue;
      if (best < 0 || logits[e] > logits[best]) best = e;
    }
    ids[j] = best;
  }
  float sum = 0;
  for (int j = 0; j < top_k; ++j) sum += weights[j] = std::exp(logits[ids[j]] - logits[ids[0]]);
  for (int j = 0; j < top_k; ++j) weights[j] /= sum;
}

template <typename Gate>
void NormAndRoute(const AddRmsNormGateParams& p) {
  const int hidden_size = p.norm.hidden_size;
  NormRows(p.norm, 4.0 + 2.0 * p.num_experts, [&](int64_t t, const float* row) {
    float logits[kMaxExperts];
    Dot(&row, 1, static_cast<const Gate*>(p.gate), hidden_size, p.num_experts, hidden_size, logits,
        p.num_experts);
    ChooseExperts(logits, p.num_experts, p.top_k, p.expert_ids + t * p.top_k,
                  p.expert_weights + t * p.top_k);
  });
}

}  // namespace

void AddRmsNorm(const AddRmsNormParams& p) {
  NormRows(p, 4.0, [](int64_t, const float*) {});
}

void AddRmsNormGate(const AddRmsNormGateParams& p) {
  CHECK(1 <= p.top_k && p.top_k <= p.num_experts && p.num_experts <= kMaxExperts)
      << p.top_k << " of " << p.num_experts;
  switch (p.gate_dtype) {
    case DType::kF32:
      return NormAndRoute<float>(p);
    case DType::kBF16:
      return NormAndRoute<BF16>(p);
    default:
      CHECK(false) << "gate is " << Name(p.gate_dtype) << ", the CPU takes f32 or bf16";
  }
}

}  // namespace bough::cpu
