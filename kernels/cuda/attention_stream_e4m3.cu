// The stream kernel over an e4m3 cache.
#include "kernels/cuda/attention_stream_launch.cuh"

namespace bough::cuda {

void LaunchStreamE4M3(const AttentionParams& p, const WorkPlan& plan, Stream stream) {
  LaunchStream<E4M3>(p, plan, stream);
}

}  // namespace bough::cuda
