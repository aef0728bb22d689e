// The e4m3 tiles of gemm_sm90.cuh; apart from the others to compile side by side.
#include "kernels/cuda/gemm_sm90.cuh"

namespace bough::cuda {

void TiledGemmE4M3(const GroupedGemmParams& p, const GemmConfig& config, Stream stream) {
  LaunchConfig<E4M3>(p, config, stream);
}

}  // namespace bough::cuda
