// One sequence's keys and values of one head, found through its block table.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/check.h"
#include "kernels/cpu/online_softmax.h"
#include "kernels/dtype.h"

namespace bough::cpu {

template <typename T>
struct PagedKv {
  const T* k_cache;            // [num_blocks, num_kv_heads, block_size, head_dim]
  const T* v_cache;            // as k_cache
  const int32_t* block_table;  // the sequence's
  int kv_head, num_kv_heads, block_size, head_dim;

  // Calls visit(chunk) for the chunks that hold keys [begin, end), in ascending order. Chunks start
  // at multiples of kChunkKeys within their block, whatever `begin` is, and stop at `end`.
  template <typename Visit>
  void ForEachChunk(int begin, int end, Visit visit) const {
    const int chunk_size = std::min(block_size, kChunkKeys);
    for (int block = begin / block_size; block * block_size < end; ++block) {
      const int64_t block_row = (int64_t{block_table[block]} * num_kv_heads + kv_head) * block_size;
      for (int row = 0; row < block_size; row += chunk_size) {
        const int first_key = block * block_size + row;
        const int num_keys = std::min({chunk_size, block_size - row, end - first_key});
        if (num_keys <= 0 || first_key + num_keys <= begin) continue;
        const int64_t offset = (block_row + row) * head_dim;
        visit(KeyChunk<T>{k_cache + offset, v_cache + offset, first_key, num_keys});
      }
    }
  }
};

// What one unit of a head's cache stands for.
struct KvScale {
  float k = 1, v = 1;
};
template <typename Params>
KvScale KvScaleOf(const Params& p, int kv_head) {
  return {p.k_scale ? p.k_scale[kv_head] : 1, p.v_scale ? p.v_scale[kv_head] : 1};
}

// What both attention ops require of their shapes.
template <typename Params>
void CheckAttentionShapes(const Params& p) {
  CHECK(p.dtype == DType::kF32) << "q is " << Name(p.dtype) << ", the CPU takes f32";
  CHECK(p.num_kv_heads > 0 && p.num_heads % p.num_kv_heads == 0)
      << p.num_heads << " heads over " << p.num_kv_heads;
  CHECK(p.head_dim > 0 && p.head_dim % kLanes == 0) << "head_dim is " << p.head_dim;
  CHECK_GT(p.block_size, 0);
}

// Calls run.template operator()<T>() with T the cache's element type.
template <typename Run>
void DispatchKvDType(DType kv_dtype, Run run) {
  switch (kv_dtype) {
    case DType::kF32:
      return run.template operator()<float>();
    case DType::kBF16:
      return run.template operator()<BF16>();
    case DType::kF8E4M3:
      return run.template operator()<E4M3>();
    default:
      CHECK(false) << "the cache is " << Name(kv_dtype) << ", the CPU takes f32, bf16 or f8_e4m3";
  }
}

}  // namespace bough::cpu
