// Tile attention over an e4m3 cache that is widened to f16.
#include "kernels/cuda/attention_nodes.cuh"
#include "kernels/cuda/attention_prefill.cuh"
#include "kernels/cuda/attention_tile_launch.h"

namespace bough::cuda {

template <int kHeadDim>
using Shape = TileShape<E4M3, __half, kHeadDim, 2>;

void LaunchPrefillF16(const AttentionParams& p, const PrefillPlan& plan, Stream stream) {
  if (p.head_dim == 64) return LaunchPrefill<Shape<64>>(p, plan, stream);
  LaunchPrefill<Shape<128>>(p, plan, stream);
}

void LaunchNodesF16(const AttentionParams& p, const WorkPlan& plan, Stream stream) {
  if (p.head_dim == 64) return LaunchNodes<Shape<64>>(p, plan, stream);
  LaunchNodes<Shape<128>>(p, plan, stream);
}

}  // namespace bough::cuda
