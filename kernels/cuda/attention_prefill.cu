// Launches of the kernels made of attention_tile.cuh, by the cache's type and whether its elements are
// multiplied as they are.
#include "kernels/cuda/attention_tile_launch.h"

namespace bough::cuda {

int TileAttentionGrid(const AttentionParams&) { return NumSms(); }

void LaunchTileAttention(const AttentionParams& p, const WorkPlan& plan, Stream stream) {
  if (p.kv_dtype == DType::kBF16) return LaunchNodesBF16(p, plan, stream);
  return p.fp8_products ? LaunchNodesE4M3(p, plan, stream) : LaunchNodesF16(p, plan, stream);
}

void LaunchPrefillAttention(const AttentionParams& p, Stream stream) {
  const PrefillPlan plan = PrefillPlanIn(p);
  if (p.kv_dtype == DType::kBF16) return LaunchPrefillBF16(p, plan, stream);
  return p.fp8_products ? LaunchPrefillE4M3(p, plan, stream) : LaunchPrefillF16(p, plan, stream);
}

}  // namespace bough::cuda
