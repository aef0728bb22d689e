// Which kernel serves which batch. Both ops: bf16 queries over a bf16 or e4m3 cache of 64-key blocks,
// head_dim 64 or 128, take the tensor core kernels; anything else the plain one. PagedAttention's
// sequences with one query go to the decode kernel, those with more to the prefill kernel.
#include "kernels/cuda/attention_kernels.cuh"

namespace bough::cuda {
namespace {

template <typename Params>
void CheckShapes(const Params& p) {
  CHECK(p.num_kv_heads > 0 && p.num_heads % p.num_kv_heads == 0)
      << p.num_heads << " heads over " << p.num_kv_heads;
  CHECK_GT(p.block_size, 0);
}

template <typename Params>
bool TakesTensorCores(const Params& p) {
  return p.dtype == DType::kBF16 && (p.kv_dtype == DType::kBF16 || p.kv_dtype == DType::kF8E4M3) &&
         (p.head_dim == 64 || p.head_dim == 128) && p.block_size == kBlockKeys &&
         p.num_heads / p.num_kv_heads <= kMaxHeadsPerKv && p.q_stride % 8 == 0;
}

}  // namespace

int64_t AttentionWorkspaceBytes(int max_num_seqs, int num_heads, int head_dim) {
  return DecodeWorkspaceBytes(max_num_seqs, num_heads, head_dim);
}

void PagedAttention(const PagedAttentionParams& params, Stream stream) {
  if (params.num_seqs == 0) return;
  CheckShapes(params);
  AttentionParams p;
  static_cast<PagedAttentionParams&>(p) = params;
  if (!TakesTensorCores(p)) return LaunchPlainAttention(p, stream);
  LaunchDecodeAttention(p, stream);
  if (p.max_seqlen_q > 1) LaunchPrefillAttention(p, stream);
}

void BifurcatedAttention(const BifurcatedAttentionParams& b, Stream stream) {
  if (b.num_seqs == 0) return;
  CheckShapes(b);
  AttentionParams p;
  p.q = b.q;
  p.k_cache = b.k_cache;
  p.v_cache = b.v_cache;
  p.k_scale = b.k_scale;
  p.v_scale = b.v_scale;
  p.block_tables = b.block_tables;
  p.seqlens_kv = b.seqlens_kv;
  p.group_start = b.group_start;
  p.prefix_len = b.prefix_len;
  p.o = b.o;
  p.workspace = b.workspace;
  p.max_seqlen_q = 1;
  p.num_seqs = b.num_seqs;
  p.num_groups = b.num_groups;
  p.num_heads = b.num_heads;
  p.num_kv_heads = b.num_kv_heads;
  p.head_dim = b.head_dim;
  p.block_size = b.block_size;
  p.max_blocks = b.max_blocks;
  p.q_stride = b.q_stride;
  p.sm_scale = b.sm_scale;
  p.dtype = b.dtype;
  p.kv_dtype = b.kv_dtype;
  return TakesTensorCores(p) ? LaunchDecodeAttention(p, stream) : LaunchPlainAttention(p, stream);
}

}  // namespace bough::cuda
