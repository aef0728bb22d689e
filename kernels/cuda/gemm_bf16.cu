// The bf16 tiles of gemm_sm90.cuh; apart from the others to compile side by side.
#include "kernels/cuda/gemm_sm90.cuh"

namespace bough::cuda {

void TiledGemmBF16(const GroupedGemmParams& p, const GemmConfig& config, Stream stream) {
  LaunchConfig<BF16>(p, config, stream);
}

}  // namespace bough::cuda
