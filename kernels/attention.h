// Attention over the paged KV cache, plain and bifurcated.
//
//   o_i = softmax(q_i K^T * sm_scale) V     over the keys that query i may see
//
// b = sequences, g = num_kv_heads, k = head_dim, m_c / m_d = shared / private length.
//
// The CPU twins give a query the same bits whether it is decoded, prefilled in chunks of any size
// or bifurcated, whatever else is in the batch. They take f32 q and o, an f32, bf16 or e4m3 cache,
// and a head_dim that is a multiple of 8. The CUDA twins split a query's keys over thread blocks and
// merge the parts in the kernel, always in the order of the keys; how many parts depends on the
// batch's lengths.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/stream.h"

namespace bough {

// CUDA's scratch for partial results and counters of launches with at most `max_num_seqs` sequences;
// zeroed before its first use, ops leave the counters zero. One op at a time may use it.
namespace cuda {
int64_t AttentionWorkspaceBytes(int max_num_seqs, int num_heads, int head_dim);
}

// Sequence s has seqlens_kv[s] keys, already in the cache, and queries at the last num_q of their
// positions, num_q = cu_seqlens_q[s + 1] - cu_seqlens_q[s]. The query at position p sees keys
// [max(0, p + 1 - sliding_window), p + 1), or [0, p + 1) when sliding_window is 0.
// Serves prefill, chunked prefill and decode.
// KV bytes of a decode step: 2 g k b (m_c + m_d).
struct PagedAttentionParams {
  const void* q = nullptr;         // [num_tokens, num_heads, head_dim], rows q_stride apart
  const void* k_cache = nullptr;   // [num_blocks, num_kv_heads, block_size, head_dim] kv_dtype
  const void* v_cache = nullptr;   // as k_cache
  const float* k_scale = nullptr;  // [num_kv_heads], multiply the cache's; nullptr: 1
  const float* v_scale = nullptr;  // as k_scale
  const int32_t* block_tables = nullptr;  // [num_seqs, max_blocks]; not read past seqlen
  const int32_t* cu_seqlens_q = nullptr;  // [num_seqs + 1] half-open query ranges
  const int32_t* seqlens_kv = nullptr;    // [num_seqs] tokens
  void* o = nullptr;                      // [num_tokens, num_heads, head_dim]
  void* workspace = nullptr;              // cuda::AttentionWorkspaceBytes; the CPU takes nullptr
  int max_seqlen_q = 0;  // host's upper bound of num_q of any sequence; 1 = a decode step
  int num_seqs = 0, num_heads = 0, num_kv_heads = 0, head_dim = 0, block_size = 0, max_blocks = 0;
  int q_stride = 0;        // elements from one token's q to the next (q may lie inside qkv)
  int sliding_window = 0;  // keys; 0 = unlimited
  float sm_scale = 1;
  DType dtype = DType::kF32, kv_dtype = DType::kF32;
};

// Decode (one query a sequence) when sequences share leading blocks: each group's shared part
// [0, prefix_len) is read once for all its rows, each row's own part [prefix_len, seqlen) by
// itself, and the two softmax states are merged; exact up to rounding. KV bytes fall to
//   2 g k (m_c + b m_d)      [bifurcated attention, arXiv 2403.08845, sec. 4.3]
// The shared part is found through the group's first row; the other rows' table entries for it are
// not read. No sliding window: a batch with one takes PagedAttention.
struct BifurcatedAttentionParams {
  const void* q = nullptr;         // [num_seqs, num_heads, head_dim], rows q_stride apart
  const void* k_cache = nullptr;   // [num_blocks, num_kv_heads, block_size, head_dim] kv_dtype
  const void* v_cache = nullptr;   // as k_cache
  const float* k_scale = nullptr;  // [num_kv_heads], multiply the cache's; nullptr: 1
  const float* v_scale = nullptr;  // as k_scale
  const int32_t* block_tables = nullptr;  // [num_seqs, max_blocks]
  const int32_t* seqlens_kv = nullptr;    // [num_seqs] tokens, prefix included
  const int32_t* group_start = nullptr;   // [num_groups + 1] row ranges, from 0 to num_seqs
  const int32_t* prefix_len = nullptr;    // [num_groups] tokens, whole blocks; may be 0
  void* o = nullptr;                      // [num_seqs, num_heads, head_dim]
  void* workspace = nullptr;              // cuda::AttentionWorkspaceBytes; the CPU takes nullptr
  int num_seqs = 0, num_groups = 0, num_heads = 0, num_kv_heads = 0, head_dim = 0, block_size = 0;
  int max_blocks = 0, q_stride = 0;
  float sm_scale = 1;
  DType dtype = DType::kF32, kv_dtype = DType::kF32;
};

namespace cpu {
void PagedAttention(const PagedAttentionParams&);
void BifurcatedAttention(const BifurcatedAttentionParams&);
}  // namespace cpu

namespace cuda {
void PagedAttention(const PagedAttentionParams&, Stream);
void BifurcatedAttention(const BifurcatedAttentionParams&, Stream);
}  // namespace cuda

}  // namespace bough
