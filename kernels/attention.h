// Attention over the paged KV cache. Sequences that share leading blocks may read them once for all
// of them (bifurcated attention, arXiv 2403.08845 sec. 4.3, of one shared context; here a forest).
//
//   o_i = softmax(q_i K^T * sm_scale) V     over the keys that query i may see
//
// KV bytes of a decode step, b sequences of m_c shared and m_d own keys, g KV heads of size k:
//   plain 2 g k b (m_c + m_d)      shared 2 g k (m_c + b m_d)
//
// The CPU twins give a query the same bits whether it is decoded, prefilled in chunks of any size
// or reads shared nodes, whatever else is in the batch. They take f32 q and o, an f32, bf16 or e4m3
// cache, and a head_dim that is a multiple of 8. The CUDA twins split a query's keys over thread
// blocks and merge the parts in the kernel, always in the order of the keys; how many parts depends
// on the batch's lengths. For them all cache bytes are finite numbers, those behind a sequence's end
// too (a pool starts as zeros), and so may be read.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/stream.h"

namespace bough {

// Rows of sequences [seq_begin, seq_end) all see keys [key_begin, key_end), in the same blocks. The
// blocks are found through the first of the sequences; the others' table entries for them are not
// read. A node with seq_begin == seq_end or key_begin == key_end stands for nothing.
struct alignas(16) SharedNode {
  int32_t seq_begin = 0, seq_end = 0;
  int32_t key_begin = 0, key_end = 0;  // positions; multiples of block_size
};
// Nodes that hold one sequence, at most.
inline constexpr int kMaxForestDepth = 4;

// Sequence s has seqlens_kv[s] keys, already in the cache, and queries at the last num_q of their
// positions, num_q = cu_seqlens_q[s + 1] - cu_seqlens_q[s]. The query at position p sees keys
// [max(0, p + 1 - sliding_window), p + 1), or [0, p + 1) when sliding_window is 0. A sequence with
// no keys gets zeros. Serves prefill, chunked prefill, decode, and decode with a few queries a
// sequence (speculation).
//
// With nodes: they are sorted by (seq_begin, key_begin), either nested or disjoint in sequences; the
// nodes of a sequence cover its keys [0, own_begin[s]), one after the other, all before its first
// query's position.
struct PagedAttentionParams {
  const void* q = nullptr;         // [num_tokens, num_heads, head_dim], rows q_stride apart
  const void* k_cache = nullptr;   // [num_blocks, num_kv_heads, block_size, head_dim] kv_dtype
  const void* v_cache = nullptr;   // as k_cache; e4m3: as kv_layout.h says
  const float* k_scale = nullptr;  // [num_kv_heads], multiply the cache's; nullptr: 1
  const float* v_scale = nullptr;  // as k_scale
  const int32_t* block_tables = nullptr;  // [num_seqs, max_blocks]; not read past seqlen
  const int32_t* cu_seqlens_q = nullptr;  // [num_seqs + 1] half-open query ranges, in tokens
  const int32_t* seqlens_kv = nullptr;    // [num_seqs] tokens
  const SharedNode* nodes = nullptr;      // [num_nodes]
  const int32_t* own_begin = nullptr;     // [num_seqs] keys; not read when num_nodes is 0
  void* o = nullptr;                      // [num_tokens, num_heads, head_dim]
  void* workspace = nullptr;              // cuda::AttentionWorkspaceBytes; the CPU takes nullptr
  int max_seqlen_q = 0;  // host's upper bound of num_q of any sequence; 1 = a decode step
  int num_seqs = 0, num_nodes = 0;
  int num_heads = 0, num_kv_heads = 0, head_dim = 0, block_size = 0, max_blocks = 0;
  int q_stride = 0;        // elements from one token's q to the next (q may lie inside qkv)
  int sliding_window = 0;  // keys; 0 = unlimited
  float sm_scale = 1;
  DType dtype = DType::kF32, kv_dtype = DType::kF32;
  // CUDA, e4m3 cache: q (with a scale per token and head) and the softmax weights go to e4m3 too, and
  // tensor cores multiply e4m3 with e4m3. Else K and V are widened exactly and multiplied in f16.
  bool fp8_products = false;
};

namespace cpu {
void PagedAttention(const PagedAttentionParams&);
}  // namespace cpu

namespace cuda {
// Scratch for plans, partial results and counters of launches with at most `max_num_tokens` tokens
// of at most `max_num_seqs` sequences; zeroed before its first use. One op at a time may use it.
int64_t AttentionWorkspaceBytes(int max_num_tokens, int max_num_seqs, int num_heads,
                                int num_kv_heads, int head_dim);

// Divides a batch's attention over the GPU and leaves the plan in the workspace, for all layers'
// PagedAttention with the same parameters but for q, the cache's pointers and scales, and o. On the
// stream, before them; again whenever lengths, tables or nodes have changed.
void PlanAttention(const PagedAttentionParams&, Stream);
void PagedAttention(const PagedAttentionParams&, Stream);
}  // namespace cuda

}  // namespace bough
