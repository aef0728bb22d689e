// Which of the stream kernel's instantiations serves a batch.
#pragma once

#include "kernels/cuda/attention_stream.cuh"

namespace bough::cuda {

template <typename KV, int kHeadDim, int kTiles>
void LaunchStreamKernel(const AttentionParams& p, const WorkPlan& plan, Stream stream) {
  using S = StreamShape<KV, kHeadDim, kTiles, kStreamBlocksPerSm>;
  static_assert(sizeof(StreamShared<S>) <= S::kBytes, "thread blocks share an SM's memory");
  const auto kernel = StreamAttentionKernel<S>;
  static const bool allowed = [&] {
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    sizeof(StreamShared<S>)));
    return true;
  }();
  (void)allowed;
  // The pool's size is not the op's to know; blocks that tables name are in it.
  constexpr int64_t kManyRows = int64_t{1} << 31;
  const CUtensorMap k_map =
      MakeTensorMap(p.k_cache, kManyRows, S::kRowBytes, S::kBoxBytes, kBlockKeys);
  const CUtensorMap v_map =
      S::kWidens ? MakeTensorMap(p.v_cache, kManyRows, kBlockKeys, kBlockKeys, kHeadDim)
                 : MakeTensorMap(p.v_cache, kManyRows, S::kRowBytes, S::kBoxBytes, kBlockKeys);
  Launch(kernel, dim3(StreamAttentionGrid()), kStreamThreads, sizeof(StreamShared<S>), stream,
         k_map, v_map, p, plan, p.num_nodes > 0);
}

template <typename KV>
void LaunchStream(const AttentionParams& p, const WorkPlan& plan, Stream stream) {
  const auto with_tiles = [&]<int kTiles>() {
    if (p.head_dim == 64) return LaunchStreamKernel<KV, 64, kTiles>(p, plan, stream);
    return LaunchStreamKernel<KV, 128, kTiles>(p, plan, stream);
  };
  if (StreamTiles(p) == 1) return with_tiles.template operator()<1>();
  return with_tiles.template operator()<2>();
}

}  // namespace bough::cuda
