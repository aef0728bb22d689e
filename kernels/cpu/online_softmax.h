// Softmax attention, one chunk of keys at a time. The state of a query after some of its keys is
//
//   m = max_j s_j    l = sum_j e^(s_j - m)    o = sum_j e^(s_j - m) v_j      s_j = sm_scale q . k_j
//
// with the empty state m = -inf, l = 0, o = 0. Two states over disjoint keys merge into
//
//   m = max(m1, m2)    l = l1 e^(m1 - m) + l2 e^(m2 - m)    o likewise
//
// (arXiv 1805.02867), and the answer is o / l. The cache's k_scale is part of sm_scale, its v_scale
// multiplies the answer. `Attend` merges the next chunk's state into each row's. A row's bits depend on its own query, its own keys and where the cache's blocks divide
// them; not on the rows beside it. So decode, chunked prefill and shared nodes agree bit by bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/dot_tile.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/weighted_sum.h"

namespace bough::cpu {

constexpr int kTileRows = 32;   // rows that share one pass over a chunk
constexpr int kChunkKeys = 64;  // 32 KiB of bf16 K and V at head_dim 128

// One query of one head, on its way through the keys.
struct AttendingRow {
  const float* q = nullptr;  // [head_dim]
  float* o = nullptr;        // [head_dim]; the state's o until `Finish`
  int begin = 0, end = 0;    // it sees the keys at positions [begin, end)
  float m = -std::numeric_limits<float>::infinity();
  float l = 0;
};

inline void Start(AttendingRow& row, int head_dim) { std::fill_n(row.o, head_dim, 0.0f); }

// A row without keys gives 0.
inline void Finish(AttendingRow& row, int head_dim, float v_scale) {
  const float scale = row.l > 0 ? v_scale / row.l : 0.0f;
  for (int d = 0; d < head_dim; ++d) row.o[d] *= scale;
}

// Turns scores[begin, end) into e^(s - m), and m, l, o to the new m. Keys outside stay untouched.
inline void AbsorbScores(AttendingRow& row, float* scores, int begin, int end, float sm_scale,
                         int head_dim) {
  float m = row.m;
  for (int j = begin; j < end; ++j) {
    scores[j] *= sm_scale;
    m = std::max(m, scores[j]);
  }
  if (m > row.m) {
    const float correction = std::exp(row.m - m);  // 0 for the empty state
    row.m = m;
    row.l *= correction;
    for (int d = 0; d < head_dim; ++d) row.o[d] *= correction;
  }
  F32x8 sum = {};
  for (int j = begin; j < end; j += kLanes) {
    const int count = std::min(kLanes, end - j);
    const F32x8 p = Exp(LoadPartial(scores + j, count) - m);
    StorePartial(scores + j, p, count);
    sum += LoadPartial(scores + j, count);
  }
  row.l += Sum(sum);
}

// Keys of one head at positions [first_key, first_key + num_keys), contiguous in the cache.
template <typename K, typename V>
struct KeyChunk {
  const K* k;  // [num_keys, head_dim]
  const V* v;  // as k
  int first_key;
  int num_keys;  // <= kChunkKeys
};

// Each row takes the keys of the chunk that it sees. num_rows <= kTileRows.
template <typename K, typename V>
inline void Attend(AttendingRow* rows, int num_rows, const KeyChunk<K, V>& chunk, int head_dim,
                   float sm_scale) {
  const float* q[kTileRows];
  float* o[kTileRows];
  int begin[kTileRows], end[kTileRows];  // within the chunk
  int first = chunk.num_keys, last = 0;
  for (int r = 0; r < num_rows; ++r) {
    q[r] = rows[r].q;
    o[r] = rows[r].o;
    begin[r] = std::clamp(rows[r].begin - chunk.first_key, 0, chunk.num_keys);
    end[r] = std::clamp(rows[r].end - chunk.first_key, begin[r], chunk.num_keys);
    if (begin[r] == end[r]) continue;
    first = std::min(first, begin[r]);
    last = std::max(last, end[r]);
  }
  if (first >= last) return;

  // V is read last: let it come while K is at work.
  for (int64_t i = first * head_dim; i < last * head_dim; i += 64 / sizeof(V)) {
    __builtin_prefetch(chunk.v + i);
  }
  float scores[kTileRows * kChunkKeys];
  Dot(q, num_rows, chunk.k + int64_t{first} * head_dim, head_dim, last - first, head_dim,
      scores + first, kChunkKeys);
  for (int r = 0; r < num_rows; ++r) {
    AbsorbScores(rows[r], scores + r * kChunkKeys, begin[r], end[r], sm_scale, head_dim);
  }
  AddWeighted(o, num_rows, scores, kChunkKeys, chunk.v, begin, end, head_dim);
}

}  // namespace bough::cpu
