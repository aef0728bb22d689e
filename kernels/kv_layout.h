// Where the elements of a block of an e4m3 V cache lie: [num_blocks, num_kv_heads, head_dim,
// block_size], the key of row r of the block in column ValueColumn(r). K, and V of any other type,
// lie as [num_blocks, num_kv_heads, block_size, head_dim].
//
// Tensor cores contract e4m3 operands along the contiguous axis only. For weights times V that axis
// is the keys, so V is stored the way it is read, once, rather than turned over by every kernel at
// every step. Within 16 keys the order is that in which a thread's scores leave the first product's
// accumulator (keys 2q, 2q + 1, 2q + 8, 2q + 9 in thread q of four), so that they enter the second
// one as they stand; a sum over keys does not mind.
#pragma once

namespace bough {

// A permutation of each 16 rows. REQUIRES: blocks of a multiple of 16 rows.
constexpr int ValueColumn(int row) {
  const int a = row / 8 % 2, q = row / 2 % 4, b = row % 2;
  return row / 16 * 16 + 4 * q + 2 * a + b;
}

}  // namespace bough
