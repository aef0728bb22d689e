// The stream kernel over a bf16 cache.
#include "kernels/cuda/attention_stream_launch.cuh"

namespace bough::cuda {

void LaunchStreamBF16(const AttentionParams& p, const WorkPlan& plan, Stream stream) {
  LaunchStream<BF16>(p, plan, stream);
}

}  // namespace bough::cuda
