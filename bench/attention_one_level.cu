#include "bench/attention_one_level.h"
#include "kernels/cuda/attention_nodes.cuh"
#include "kernels/cuda/attention_prefill.cuh"

namespace bough {
namespace {

using Shape = cuda::TileShape<cuda::E4M3, cuda::E4M3, 128, 2>;

}  // namespace

void OneLevelAttention(const PagedAttentionParams& params, Stream stream) {
  CHECK(params.fp8_products && params.kv_dtype == DType::kF8E4M3 && params.head_dim == 128);
  cuda::AttentionParams p;
  static_cast<PagedAttentionParams&>(p) = params;
  const cuda::WorkPlan plan = cuda::PlanIn(p);
  if (p.num_nodes > 0) cuda::LaunchNodes<Shape, false>(p, plan, stream);
  cuda::LaunchStreamE4M3(p, plan, stream);
  if (!cuda::AllInPlan(p)) cuda::LaunchPrefill<Shape, false>(p, cuda::PrefillPlanIn(p), stream);
}

}  // namespace bough
