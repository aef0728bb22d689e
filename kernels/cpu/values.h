// Values of an e4m3 cache, which lie as kv_layout.h says, as rows of f32.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cpu/simd.h"
#include "kernels/kv_layout.h"

namespace bough::cpu {

constexpr int kValueKeys = 16;  // whose order ValueColumn changes

// 8 dims of 16 keys turned into 16 keys of 8 dims. One round takes byte b of vector v, at the place
// 16 v + b of 128, to place 2 (16 v + b) mod 127: it rotates the place's seven bits (three of a dim,
// then four of a key) by one. Three rounds put the key's in front.
inline void Transpose8x16(const E4M3* dims, int64_t stride, U8x16 (&keys)[8]) {
  for (int d = 0; d < 8; ++d) std::memcpy(&keys[d], dims + d * stride, sizeof(U8x16));
  for (int round = 0; round < 3; ++round) {
    U8x16 next[8];
    for (int i = 0; i < 4; ++i) {
      next[2 * i] = __builtin_shufflevector(keys[i], keys[i + 4], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20,
                                            5, 21, 6, 22, 7, 23);
      next[2 * i + 1] = __builtin_shufflevector(keys[i], keys[i + 4], 8, 24, 9, 25, 10, 26, 11, 27,
                                                12, 28, 13, 29, 14, 30, 15, 31);
    }
    std::memcpy(keys, next, sizeof(next));
  }
}

// out: [num_keys rounded up to 16, head_dim]. `v`: column of the first key, a multiple of 16, in a
// block's [head_dim, block_size]. REQUIRES: head_dim is a multiple of 8.
inline void WidenValues(const E4M3* v, int block_size, int num_keys, int head_dim, float* out) {
  for (int key = 0; key < num_keys; key += kValueKeys) {
    for (int d = 0; d < head_dim; d += kLanes) {
      U8x16 columns[8];  // two keys each
      Transpose8x16(v + int64_t{d} * block_size + key, block_size, columns);
      for (int row = 0; row < kValueKeys; ++row) {
        const E4M3* codes = reinterpret_cast<const E4M3*>(columns) + ValueColumn(row) * kLanes;
        Store(out + int64_t{key + row} * head_dim + d, Load(codes));
      }
    }
  }
}

}  // namespace bough::cpu
