#include "kernels/ops.h"

namespace bough::cuda {

const Ops& Table() {
  static constexpr Ops kTable = {
      .Embedding = Embedding,
      .AddRmsNorm = AddRmsNorm,
      .RopeAppend = RopeAppend,
      .SiluMul = SiluMul,
      .Quantize = Quantize,
      .QuantizeWeights = QuantizeWeights,
      .CopyBlocks = CopyBlocks,
      .Gemm = Gemm,
      .GroupedGemm = GroupedGemm,
      .AddRmsNormGate = AddRmsNormGate,
      .MoeRoute = MoeRoute,
      .MoeCombine = MoeCombine,
      .PlanAttention = PlanAttention,
      .PagedAttention = PagedAttention,
      .Sample = Sample,
      .FillUniform = FillUniform,
      .AttentionWorkspaceBytes = AttentionWorkspaceBytes,
  };
  return kTable;
}

}  // namespace bough::cuda
