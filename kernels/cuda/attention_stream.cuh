// The stream kernel: up to 16 query rows over many keys, bound by how fast the cache can be read.
//
// A producer warp walks the thread block's parts and keeps a ring of stages full, each a block of 64
// keys and values as TMA lays it down, so that short parts stream as long ones do; the first stage of
// a part brings its queries too. Four consumer warps take 16 keys of every stage each, with tensor
// core instructions from registers (mma): a warp needs nothing of the others until the part ends, when
// their states are merged through the stage's memory. S^T = K Q^T and O^T = V^T P^T, so that 8 query
// rows fill an instruction. Two or three thread blocks an SM hide what a part's end takes.
//
// An e4m3 cache is widened to f16 in registers, which is exact and costs a quarter of the time that the
// memory leaves; Hopper's e4m3 products need wgmma, which needs weights in shared memory. So
// fp8_products makes no difference here.
#pragma once

#include "kernels/cuda/attention_stream_consumer.cuh"
#include "kernels/cuda/attention_stream_producer.cuh"
#include "kernels/cuda/tensor_map.h"

namespace bough::cuda {

// after_tiles: the tile kernel is the one before on the stream, and what came before it has ended.
template <typename S>
__global__ void __launch_bounds__(kStreamThreads, S::kPerSm)
    StreamAttentionKernel(const __grid_constant__ CUtensorMap k_map,
                          const __grid_constant__ CUtensorMap v_map,
                          const __grid_constant__ AttentionParams p,
                          const __grid_constant__ WorkPlan plan, bool after_tiles) {
  extern __shared__ __align__(1024) uint8_t shared_bytes[];
  StreamShared<S>& shared = *reinterpret_cast<StreamShared<S>*>(shared_bytes);
  if (threadIdx.x == kConsumers) {
    PrefetchTensorMap(&k_map);
    PrefetchTensorMap(&v_map);
    for (int i = 0; i < S::kStages; ++i) {
      InitBarrier(&shared.full[i], 1);
      InitBarrier(&shared.empty[i], kConsumerWarps);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  if (threadIdx.x >= kConsumers) {
    StreamProducer<S>{p, plan, k_map, v_map, shared, !after_tiles}.Run();
  } else {
    StreamConsumer<S>{p, plan, shared}.Run();
  }
  if (after_tiles) WaitForPrevious();  // who waits for this kernel means both
}

}  // namespace bough::cuda
