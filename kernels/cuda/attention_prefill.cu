// Prefill attention: a thread block takes a tile of 128 query rows of one KV head, (query, head)
// pairs with the query outermost, so that heads which share keys read them once. The last tiles see
// most keys and start first, so that none is left over at the end. One H200, causal, 32 query and 8 KV
// heads of 128, bf16 and e4m3 cache: 1K tokens 159 and 145 TFLOPS, 4K 304 and 272, 16K 354 and 311.
#include "kernels/cuda/attention_tile.cuh"

namespace bough::cuda {
namespace {

// Rows [first_row, first_row + num_rows) of one sequence and KV head.
struct PrefillRows {
  static constexpr int kStepKeys = 64;
  static constexpr bool kSeeAll = false;
  const AttentionParams& p;
  int num_rows;
  int first_row, kv_head;
  int first_token, first_position;  // of the sequence's first query

  __device__ const BF16* Query(int row) const {
    const int heads = p.HeadsPerKv(), at = first_row + row;
    return p.Query(first_token + at / heads, kv_head * heads + at % heads);
  }
  __device__ BF16* Output(int row) const {
    const int heads = p.HeadsPerKv(), at = first_row + row;
    return p.Output(first_token + at / heads, kv_head * heads + at % heads);
  }
  __device__ int KeyEnd(int row) const {
    return first_position + (first_row + row) / p.HeadsPerKv() + 1;
  }
  __device__ int KeyBegin(int row) const {
    return p.sliding_window > 0 ? max(0, KeyEnd(row) - p.sliding_window) : 0;
  }
};

template <typename KV, int kHeadDim>
using PrefillTile = AttentionTile<KV, kHeadDim, PrefillRows>;

template <typename KV, int kHeadDim>
__global__ void __launch_bounds__((PrefillTile<KV, kHeadDim>::kThreads), 2)
    PrefillAttentionKernel(AttentionParams p) {
  using Tile = PrefillTile<KV, kHeadDim>;
  extern __shared__ __align__(1024) char shared[];
  WaitForPrevious();
  AllowNext();
  const int seq = blockIdx.z, kv_head = blockIdx.x;
  const int first_token = p.cu_seqlens_q[seq], num_q = p.cu_seqlens_q[seq + 1] - first_token;
  const int num_rows = num_q * p.HeadsPerKv();
  const int first_row =
      (CeilDiv(num_rows, Tile::kRows) - 1 - static_cast<int>(blockIdx.y)) * Tile::kRows;
  if (num_q <= 1 || first_row < 0) return;
  const int num_keys = p.seqlens_kv[seq];
  const PrefillRows rows = {
      p, min(Tile::kRows, num_rows - first_row), first_row, kv_head, first_token, num_keys - num_q};
  const float v_scale = p.VScale(kv_head);
  Tile tile{p,
            rows,
            kv_head,
            num_keys,
            p.block_tables + int64_t{seq} * p.max_blocks,
            shared,
            static_cast<uint32_t>(__cvta_generic_to_shared(shared))};
  tile.TakeIn(rows.KeyBegin(0) / kBlockKeys, CeilDiv(rows.KeyEnd(rows.num_rows - 1), kBlockKeys),
              p.ScoreScale(kv_head));
  tile.ForEachRow([&](int row, float, float l, auto for_each_pair) {
    BF16* out = rows.Output(row);
    const float scale = l > 0 ? v_scale / l : 0;  // 0: a row without keys
    for_each_pair([&](int column, float o0, float o1) {
      *reinterpret_cast<uint32_t*>(out + column) = PackPair<BF16>(o0 * scale, o1 * scale);
    });
  });
}

}  // namespace

void LaunchPrefillAttention(const AttentionParams& p, Stream stream) {
  DispatchMmaAttention(p, [&]<typename KV, int kHeadDim>() {
    using Tile = PrefillTile<KV, kHeadDim>;
    const auto kernel = PrefillAttentionKernel<KV, kHeadDim>;
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    Tile::kSharedBytes));
    const int max_tiles = CeilDiv(p.max_seqlen_q * p.HeadsPerKv(), Tile::kRows);
    const dim3 grid(p.num_kv_heads, max_tiles, p.num_seqs);
    Launch(kernel, grid, Tile::kThreads, Tile::kSharedBytes, stream, p);
  });
}

}  // namespace bough::cuda
