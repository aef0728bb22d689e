// Where a sequence's keys and values of one head lie.
#pragma once

#include "kernels/cuda/online_softmax.cuh"

namespace bough::cuda {

// Keys in ascending order, cut into chunks of at most 32 that do not cross blocks.
template <typename KV>
struct PagedKv {
  const KV* k_cache;           // [num_blocks, num_kv_heads, block_size, head_dim]
  const KV* v_cache;           // as k_cache
  const int32_t* block_table;  // the sequence's
  int kv_head, num_kv_heads, block_size, head_dim;

  struct Chunk {
    const KV *k, *v;  // rows of head_dim elements
    int first_key;    // position of row 0 in the sequence
    int num_keys;     // rows up to the block's end, at most 32
  };

  __device__ int ChunksPerBlock() const { return CeilDiv(block_size, kChunkKeys); }

  // The chunk that holds position `key`.
  __device__ int ChunkIndex(int key) const {
    return key / block_size * ChunksPerBlock() + key % block_size / kChunkKeys;
  }

  __device__ Chunk operator[](int index) const {
    const int block = index / ChunksPerBlock();
    const int row = index % ChunksPerBlock() * kChunkKeys;
    const int64_t offset =
        ((int64_t{block_table[block]} * num_kv_heads + kv_head) * block_size + row) * head_dim;
    return {k_cache + offset, v_cache + offset, block * block_size + row,
            min(kChunkKeys, block_size - row)};
  }
};

}  // namespace bough::cuda
