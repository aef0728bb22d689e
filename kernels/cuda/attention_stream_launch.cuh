// Which of the stream kernel's instantiations serves a batch.
#pragma once

#include "kernels/cuda/attention_stream.cuh"

namespace bough::cuda {

template <typename KV, int kHeadDim, int kTiles>
void LaunchStreamKernel(const AttentionParams& p, const WorkPlan& plan, Stream stream) {
  using S = StreamShape<KV, kHeadDim, kTiles, StreamBlocksPerSm(sizeof(KV) == 1, kTiles)>;
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
      S::kWidens ? MakeTensorMap(p.v_cache, kManyRows, 128, 128, kHeadDim / 2)
                 : MakeTensorMap(p.v_cache, kManyRows, S::kRowBytes, S::kBoxBytes, kBlockKeys);
  Launch(kernel, dim3(StreamAttentionGrid(p)), kStreamThreads, sizeof(StreamShared<S>), stream,
         k_map, v_map, p, plan, p.num_nodes > 0);
}

#ifdef STATS
}
#include <vector>
#include <cstdio>
namespace bough::cuda {
inline void PrintStats(const AttentionParams& p){ static long long h[1024][12]; cudaMemcpyFromSymbol(h,stream_stats,sizeof(h)); int g=StreamAttentionGrid(p); auto med=[&](auto fn){ std::vector<double> v; for(int i=0;i<g;i++) v.push_back(fn(h[i])); std::sort(v.begin(),v.end()); printf(" %.0f/%.0f/%.0f",v[0],v[g/2],v[g-1]); }; long long t0=h[0][1]; for(int i=0;i<g;i++) t0=std::min(t0,h[i][1]);
 const char* names[]={"start","waited","full","taken","written","end"}; printf("\n  "); for(int k=0;k<6;k++){ printf(" %s",names[k]); med([&](long long*x){return x[k]-t0;}); } printf(" ns; clk"); const char* n2[]={"stall","work","fin","loop"}; for(int k=0;k<4;k++){ printf(" %s",n2[k]); med([&](long long*x){return x[6+k];}); } }
#endif
template <typename KV>
void LaunchStream(const AttentionParams& p, const WorkPlan& plan, Stream stream) {
  const auto with_tiles = [&]<int kTiles>() {
#ifndef FAST
    if (p.head_dim == 64) return LaunchStreamKernel<KV, 64, kTiles>(p, plan, stream);
#endif
    return LaunchStreamKernel<KV, 128, kTiles>(p, plan, stream);
  };
  if (StreamTiles(p) == 1) return with_tiles.template operator()<1>();
  return with_tiles.template operator()<2>();
}

}  // namespace bough::cuda
