// The e4m3 attention without its second level of sums, for bench-kernels-attention's ablation.
#pragma once

#include "kernels/attention.h"
#include "kernels/stream.h"

namespace bough {

// As cuda::PagedAttention, planned by cuda::PlanAttention, but weights times V stay in the tensor
// core's accumulator, which keeps about 14 bits, from a row's first key to its last.
// REQUIRES: what the tensor core kernels take, of head_dim 128, with fp8_products.
void OneLevelAttention(const PagedAttentionParams& params, Stream stream);

}  // namespace bough
