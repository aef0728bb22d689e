// Where a sequence's keys and values of one head lie.
#pragma once

#include "kernels/cuda/attention_kernels.cuh"
#include "kernels/cuda/online_softmax.cuh"
#include "kernels/kv_layout.h"

namespace bough::cuda {

// Keys in ascending order, cut into chunks of at most 32 that do not cross blocks.
template <typename KV>
struct PagedKv {
  const AttentionParams& p;
  int seq, kv_head;

  struct Chunk {
    const KV* k;                     // rows of head_dim elements, row 0 the chunk's first key
    const KV* v;                     // the block's
    int block_row;                   // of row 0 in the block
    int first_key;                   // position of row 0 in the sequence
    int num_keys;                    // rows up to the block's end, at most 32
    int row_stride, element_stride;  // of v

    __device__ KV operator()(int row, int i) const {
      const int in_block = block_row + row;
      const int at = sizeof(KV) == 1 ? ValueColumn(in_block) : in_block;
      return v[at * row_stride + i * element_stride];
    }
  };

  __device__ int ChunksPerBlock() const { return CeilDiv(p.block_size, kChunkKeys); }

  // The chunk that holds position `key`.
  __device__ int ChunkIndex(int key) const {
    return key / p.block_size * ChunksPerBlock() + key % p.block_size / kChunkKeys;
  }

  __device__ Chunk operator[](int index) const {
    const int block = index / ChunksPerBlock();
    const int row = index % ChunksPerBlock() * kChunkKeys;
    const int64_t id = p.block_tables[int64_t{p.TableSeq(seq, block)} * p.max_blocks + block];
    const int64_t offset = (id * p.num_kv_heads + kv_head) * p.block_size * p.head_dim;
    const bool transposed = sizeof(KV) == 1;  // kv_layout.h
    return {.k = static_cast<const KV*>(p.k_cache) + offset + row * p.head_dim,
            .v = static_cast<const KV*>(p.v_cache) + offset,
            .block_row = row,
            .first_key = block * p.block_size + row,
            .num_keys = min(kChunkKeys, p.block_size - row),
            .row_stride = transposed ? 1 : p.head_dim,
            .element_stride = transposed ? p.block_size : 1};
  }
};

}  // namespace bough::cuda
