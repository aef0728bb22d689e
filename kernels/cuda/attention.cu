// Which kernel serves which batch: bf16 queries over a bf16 or e4m3 cache of 64-key blocks, head_dim 64
// or 128, take the tensor core kernels; anything else the plain one. Of the former, sequences with
// few queries follow the plan, those with more go to the prefill kernel.
#include "kernels/cuda/attention_prefill_plan.h"
#include "kernels/cuda/attention_work.cuh"

namespace bough::cuda {
namespace {

AttentionParams Checked(const PagedAttentionParams& params) {
  AttentionParams p;
  static_cast<PagedAttentionParams&>(p) = params;
  CHECK(p.num_kv_heads > 0 && p.num_heads % p.num_kv_heads == 0)
      << p.num_heads << " heads over " << p.num_kv_heads;
  CHECK_GT(p.block_size, 0);
  return p;
}

bool TakesTensorCores(const AttentionParams& p) {
  return p.dtype == DType::kBF16 && (p.kv_dtype == DType::kBF16 || p.kv_dtype == DType::kF8E4M3) &&
         (p.head_dim == 64 || p.head_dim == 128) && p.block_size == kBlockKeys &&
         p.HeadsPerKv() <= kMaxHeadsPerKv && p.q_stride % 8 == 0;
}

}  // namespace

int64_t AttentionWorkspaceBytes(int max_num_tokens, int max_num_seqs, int num_heads,
                                int num_kv_heads, int head_dim) {
  return PlanWorkspaceBytes(max_num_tokens, max_num_seqs, num_heads, num_kv_heads, head_dim);
}

void PlanAttention(const PagedAttentionParams& params, Stream stream) {
  if (params.num_seqs == 0) return;
  const AttentionParams p = Checked(params);
  if (!TakesTensorCores(p)) return;
  if (!AllInPlan(p)) PlanPrefill(p, PrefillPlanIn(p), stream);
  LaunchPlan(p, PlanIn(p), stream);  // last: no kernel begins before it has ended
}

void PagedAttention(const PagedAttentionParams& params, Stream stream) {
  if (params.num_seqs == 0) return;
  const AttentionParams p = Checked(params);
  if (!TakesTensorCores(p)) return LaunchPlainAttention(p, stream);
  const WorkPlan plan = PlanIn(p);
  if (p.num_nodes > 0) LaunchTileAttention(p, plan, stream);
  (p.kv_dtype == DType::kBF16 ? LaunchStreamBF16 : LaunchStreamE4M3)(p, plan, stream);
  if (!AllInPlan(p)) LaunchPrefillAttention(p, stream);
}

}  // namespace bough::cuda
