// Tile attention over a bf16 cache.
#include "kernels/cuda/attention_nodes.cuh"
#include "kernels/cuda/attention_prefill.cuh"
#include "kernels/cuda/attention_tile_launch.h"

namespace bough::cuda {

template <int kHeadDim>
using Shape = TileShape<BF16, BF16, kHeadDim, 2>;

void LaunchPrefillBF16(const AttentionParams& p, const PrefillPlan& plan, Stream stream) {
  if (p.head_dim == 64) return LaunchPrefill<Shape<64>>(p, plan, stream);
  LaunchPrefill<Shape<128>>(p, plan, stream);
}

void LaunchNodesBF16(const AttentionParams& p, const WorkPlan& plan, Stream stream) {
  if (p.head_dim == 64) return LaunchNodes<Shape<64>>(p, plan, stream);
  LaunchNodes<Shape<128>>(p, plan, stream);
}

}  // namespace bough::cuda
