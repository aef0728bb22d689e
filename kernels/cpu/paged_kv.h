// One sequence's keys and values of one head, found through its block table.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "common/check.h"
#include "kernels/attention.h"
#include "kernels/cpu/online_softmax.h"
#include "kernels/cpu/values.h"

namespace bough::cpu {

template <typename T>
struct PagedKv {
  const T* k_cache;            // [num_blocks, num_kv_heads, block_size, head_dim]
  const T* v_cache;            // as k_cache; e4m3: as kv_layout.h says
  const int32_t* block_table;  // the sequence's
  int kv_head, num_kv_heads, block_size, head_dim;

  // Calls visit(chunk) for the chunks that hold keys [begin, end), in ascending order. Chunks start
  // at multiples of kChunkKeys within their block, whatever `begin` is, and stop at `end`. E4m3
  // values come as rows of f32, widened once for all who read them.
  template <typename Visit>
  void ForEachChunk(int begin, int end, Visit visit) const {
    constexpr bool kWidens = std::is_same_v<T, E4M3>;
    const int chunk_size = std::min(block_size, kChunkKeys);
    std::unique_ptr<float[]> wide;
    if (kWidens) wide = std::make_unique_for_overwrite<float[]>(int64_t{kChunkKeys} * head_dim);
    for (int block = begin / block_size; block * block_size < end; ++block) {
      const int64_t block_row = (int64_t{block_table[block]} * num_kv_heads + kv_head) * block_size;
      for (int row = 0; row < block_size; row += chunk_size) {
        const int first_key = block * block_size + row;
        const int num_keys = std::min({chunk_size, block_size - row, end - first_key});
        if (num_keys <= 0 || first_key + num_keys <= begin) continue;
        const T* const k = k_cache + (block_row + row) * head_dim;
        const T* const v = v_cache + block_row * head_dim;  // of the block
        if constexpr (kWidens) {
          WidenValues(v + row, block_size, num_keys, head_dim, wide.get());
          visit(KeyChunk<T, float>{k, wide.get(), first_key, num_keys});
        } else {
          visit(KeyChunk<T, T>{k, v + int64_t{row} * head_dim, first_key, num_keys});
        }
      }
    }
  }
};

// What one unit of a head's cache stands for.
struct KvScale {
  float k = 1, v = 1;
};
inline KvScale KvScaleOf(const PagedAttentionParams& p, int kv_head) {
  return {p.k_scale ? p.k_scale[kv_head] : 1, p.v_scale ? p.v_scale[kv_head] : 1};
}

inline void CheckAttentionShapes(const PagedAttentionParams& p) {
  CHECK(p.dtype == DType::kF32) << "q is " << Name(p.dtype) << ", the CPU takes f32";
  CHECK(p.num_kv_heads > 0 && p.num_heads % p.num_kv_heads == 0)
      << p.num_heads << " heads over " << p.num_kv_heads;
  CHECK(p.head_dim > 0 && p.head_dim % kLanes == 0) << "head_dim is " << p.head_dim;
  CHECK_GT(p.block_size, 0);
  CHECK(p.kv_dtype != DType::kF8E4M3 || p.block_size % kValueKeys == 0)
      << "an e4m3 cache's blocks are of a multiple of 16 keys, not " << p.block_size;
}

}  // namespace bough::cpu
