#include "kernels/ops.h"

namespace bough::cpu {

const Ops& Table() {
  static constexpr Ops kTable = {
      .Embedding = [](const EmbeddingParams& p, Stream) { Embedding(p); },
      .AddRmsNorm = [](const AddRmsNormParams& p, Stream) { AddRmsNorm(p); },
      .RopeAppend = [](const RopeAppendParams& p, Stream) { RopeAppend(p); },
      .SiluMul = [](const SiluMulParams& p, Stream) { SiluMul(p); },
      .Quantize = [](const QuantizeParams& p, Stream) { Quantize(p); },
      .QuantizeWeights = [](const QuantizeParams& p, Stream) { QuantizeWeights(p); },
      .CopyBlocks = [](const CopyBlocksParams& p, Stream) { CopyBlocks(p); },
      .Gemm = [](const GemmParams& p, Stream) { Gemm(p); },
      .GroupedGemm = [](const GroupedGemmParams& p, Stream) { GroupedGemm(p); },
      .AddRmsNormGate = [](const AddRmsNormGateParams& p, Stream) { AddRmsNormGate(p); },
      .MoeRoute = [](const MoeRouteParams& p, Stream) { MoeRoute(p); },
      .MoeCombine = [](const MoeCombineParams& p, Stream) { MoeCombine(p); },
      .PlanAttention = [](const PagedAttentionParams&, Stream) {},
      .PagedAttention = [](const PagedAttentionParams& p, Stream) { PagedAttention(p); },
      .Sample = [](const SampleParams& p, Stream) { Sample(p); },
      .FillUniform = [](const FillUniformParams& p, Stream) { FillUniform(p); },
      .AttentionWorkspaceBytes = [](int, int, int, int, int) { return int64_t{0}; },
  };
  return kTable;
}

}  // namespace bough::cpu
