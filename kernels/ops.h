// The ops of one backend, as a table: the model is written once, against this. On the CPU the stream
// is ignored and an op has run when it returns; on CUDA it has been put on the stream.
#pragma once

#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/init.h"
#include "kernels/moe.h"
#include "kernels/sampling.h"
#include "kernels/stream.h"

namespace bough {

struct Ops {
  template <typename Params>
  using Op = void (*)(const Params&, Stream);

  Op<EmbeddingParams> Embedding;
  Op<AddRmsNormParams> AddRmsNorm;
  Op<RopeAppendParams> RopeAppend;
  Op<SiluMulParams> SiluMul;
  Op<QuantizeParams> Quantize;
  Op<QuantizeParams> QuantizeWeights;
  Op<CopyBlocksParams> CopyBlocks;
  Op<GemmParams> Gemm;
  Op<GroupedGemmParams> GroupedGemm;
  Op<AddRmsNormGateParams> AddRmsNormGate;
  Op<MoeRouteParams> MoeRoute;
  Op<MoeCombineParams> MoeCombine;
  Op<PagedAttentionParams> PlanAttention;  // on the CPU nothing
  Op<PagedAttentionParams> PagedAttention;
  Op<SampleParams> Sample;
  Op<FillUniformParams> FillUniform;
  int64_t (*AttentionWorkspaceBytes)(int max_num_tokens, int max_num_seqs, int num_heads,
                                     int num_kv_heads, int head_dim);
};

namespace cpu {
const Ops& Table();
}
namespace cuda {
const Ops& Table();
}

}  // namespace bough
