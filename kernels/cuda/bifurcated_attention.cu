// A thread block takes up to 32 queries of one group and KV head (16 with an f32 cache, for shared
// memory's sake): (row, head) pairs, four a warp. Its warps first walk the group's prefix together,
// chunk by chunk through shared memory, so 32 queries share one read; then each warp goes on with
// its queries' own keys, straight from the cache. One softmax state lives through both parts:
// nothing is merged through memory and no workspace is needed. A group of more than 32 queries
// reads its prefix once per 32, after the first time from L2.
#include "kernels/attention.h"
#include "kernels/cuda/paged_kv.cuh"

namespace bough::cuda {
namespace {

constexpr int kWarps = 8;
template <typename KV>
constexpr int kQueriesPerWarp = sizeof(KV) == 2 ? 4 : 2;
template <typename KV>
constexpr int kTileQueries = kWarps* kQueriesPerWarp<KV>;

// The queries from first_query on of a group, one tile of them; query i is head i % heads_per_kv of
// the group's row i / heads_per_kv.
struct Tile {
  int group, row_begin, num_queries, first_query;
};

// Tiles are numbered group by group; false for blockIdx.x past the last one. Group sizes are known
// on the device only, so the grid is an upper bound.
__device__ bool FindTile(const BifurcatedAttentionParams& p, int heads_per_kv, int tile_queries,
                         Tile& tile) {
  int index = blockIdx.x;
  for (int g = 0; g < p.num_groups; ++g) {
    const int row_begin = p.group_start[g];
    const int num_queries = (p.group_start[g + 1] - row_begin) * heads_per_kv;
    const int num_tiles = CeilDiv(num_queries, tile_queries);
    if (index < num_tiles) {
      tile = {g, row_begin, num_queries, index * tile_queries};
      return true;
    }
    index -= num_tiles;
  }
  return false;
}

template <typename T, typename KV, int kHeadDim>
__global__ void BifurcatedAttentionKernel(BifurcatedAttentionParams p) {
  // One pack more than a row, so that lanes that read 32 rows at one column meet different banks.
  constexpr int kStride = kHeadDim + Pack<KV>::kSize;
  __shared__ alignas(16) KV k_tile[kChunkKeys * kStride];
  __shared__ alignas(16) KV v_tile[kChunkKeys * kStride];
  __shared__ float query[kTileQueries<KV>][kHeadDim];

  const int kv_head = blockIdx.y, heads_per_kv = p.num_heads / p.num_kv_heads;
  const int warp = threadIdx.x / kWarpSize;
  Tile tile;
  if (!FindTile(p, heads_per_kv, kTileQueries<KV>, tile)) return;
  const auto keys_of = [&](int row) -> PagedKv<KV> {
    return {static_cast<const KV*>(p.k_cache),
            static_cast<const KV*>(p.v_cache),
            p.block_tables + int64_t{row} * p.max_blocks,
            kv_head,
            p.num_kv_heads,
            p.block_size,
            kHeadDim};
  };
  const auto row_of = [&](int i) { return tile.row_begin + (tile.first_query + i) / heads_per_kv; };
  const auto head_of = [&](int i) {
    return kv_head * heads_per_kv + (tile.first_query + i) % heads_per_kv;
  };
  const int num_queries = min(kTileQueries<KV>, tile.num_queries - tile.first_query);

  for (int j = threadIdx.x; j < num_queries * kHeadDim; j += blockDim.x) {
    const int i = j / kHeadDim, d = j % kHeadDim;
    const int64_t at = int64_t{row_of(i)} * p.q_stride + head_of(i) * kHeadDim + d;
    query[i][d] = ToFloat(static_cast<const T*>(p.q)[at]) * p.sm_scale;
  }

  // The shared part, through the first row's table.
  SoftmaxState<kHeadDim> states[kQueriesPerWarp<KV>];
  const int prefix_len = p.prefix_len[tile.group];
  const PagedKv<KV> prefix = keys_of(tile.row_begin);
  const int num_chunks = prefix_len / p.block_size * prefix.ChunksPerBlock();
  for (int c = 0; c < num_chunks; ++c) {
    const auto chunk = prefix[c];
    __syncthreads();  // the tile's last readers; in the first round, the queries' writers
    for (int j = threadIdx.x * Pack<KV>::kSize; j < chunk.num_keys * kHeadDim;
         j += blockDim.x * Pack<KV>::kSize) {
      const int at = j / kHeadDim * kStride + j % kHeadDim;
      *reinterpret_cast<Pack<KV>*>(k_tile + at) = LoadPack(chunk.k + j);
      *reinterpret_cast<Pack<KV>*>(v_tile + at) = LoadPack(chunk.v + j);
    }
    __syncthreads();
#pragma unroll
    for (int s = 0; s < kQueriesPerWarp<KV>; ++s) {
      const int i = warp * kQueriesPerWarp<KV> + s;
      if (i < num_queries) {
        TakeIn(states[s], query[i], k_tile, v_tile, kStride, 0, chunk.num_keys);
      }
    }
  }
  __syncthreads();

  // Each row's own part.
#pragma unroll
  for (int s = 0; s < kQueriesPerWarp<KV>; ++s) {
    const int i = warp * kQueriesPerWarp<KV> + s;
    if (i >= num_queries) continue;
    const int row = row_of(i);
    const PagedKv<KV> own = keys_of(row);
    const int end = p.seqlens_kv[row];
    for (int c = num_chunks; end > prefix_len && c <= own.ChunkIndex(end - 1); ++c) {
      const auto chunk = own[c];
      TakeIn(states[s], query[i], chunk.k, chunk.v, kHeadDim, 0,
             min(chunk.num_keys, end - chunk.first_key));
    }
    Store(states[s], static_cast<T*>(p.o) + (int64_t{row} * p.num_heads + head_of(i)) * kHeadDim);
  }
}

}  // namespace

void BifurcatedAttention(const BifurcatedAttentionParams& p, Stream stream) {
  if (p.num_seqs == 0) return;
  CheckAttentionShapes(p);
  const int num_queries = p.num_seqs * (p.num_heads / p.num_kv_heads);
  DispatchAttention(p.dtype, p.kv_dtype, p.head_dim, [&]<typename T, typename KV, int kHeadDim>() {
    // Every group ends in at most one tile that is not full.
    const dim3 grid(num_queries / kTileQueries<KV> + p.num_groups, p.num_kv_heads);
    BifurcatedAttentionKernel<T, KV, kHeadDim><<<grid, kWarps * kWarpSize, 0, stream>>>(p);
  });
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace bough::cuda
