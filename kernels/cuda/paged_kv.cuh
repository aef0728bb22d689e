// Where a sequence's keys and values of one head lie, and the table from dtypes and head_dim to
// instantiations that both attention kernels share.
#pragma once

#include <type_traits>

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

// REQUIRES of both ops' shapes.
template <typename Params>
void CheckAttentionShapes(const Params& p) {
  CHECK(p.num_kv_heads > 0 && p.num_heads % p.num_kv_heads == 0)
      << p.num_heads << " heads over " << p.num_kv_heads;
  CHECK_GT(p.block_size, 0);
}

// Calls run.template operator()<T, KV, kHeadDim>().
template <typename Run>
void DispatchAttention(DType dtype, DType kv_dtype, int head_dim, Run run) {
  const auto with_head_dim = [&]<typename T, typename KV>() {
    if (head_dim == 32) return run.template operator()<T, KV, 32>();
    if (head_dim == 64) return run.template operator()<T, KV, 64>();
    if (head_dim == 96) return run.template operator()<T, KV, 96>();
    if (head_dim == 128) return run.template operator()<T, KV, 128>();
    CHECK(false) << "head_dim is " << head_dim << ", CUDA takes 32, 64, 96 or 128";
  };
  const auto is = [&](DType q, DType kv) { return dtype == q && kv_dtype == kv; };
  if (is(DType::kF32, DType::kF32)) return with_head_dim.template operator()<float, float>();
  if (is(DType::kF32, DType::kBF16)) return with_head_dim.template operator()<float, BF16>();
  if (is(DType::kBF16, DType::kBF16)) return with_head_dim.template operator()<BF16, BF16>();
  CHECK(false) << "q is " << Name(dtype) << " and the cache " << Name(kv_dtype)
               << ", CUDA takes f32/f32, f32/bf16 or bf16/bf16";
}

}  // namespace bough::cuda
