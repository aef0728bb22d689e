// The batches that bench-kernels-attention times, and what each may take at best. No CUDA.
//
//   decode/P/heads=H:G/ctx=C/b=B              B sequences of C keys each, nothing shared
//   decode/P/skew=65536+31x4096               one long sequence beside 31 short ones
//   shared/P/heads=H:G/ctx=C/private=S/b=B    B sequences on C shared keys, S own ones each
//   tree/P/system=2048/docs=8x4096/...        a shared context over eight shared contexts
//   tree/P/prefixes=64x4/...                  64 contexts, four sequences on each
//   speculate/P/q=4/...                       decode or shared with four queries a sequence
//   noshare/P/...                             nothing shared, but launched as if it were: empty nodes
//   crossover/P/len=L/b=B                     a short shared context: worth it from when on?
//   prefill/P/t=T, prefill/P/t=T/ctx=C        causal, of T tokens behind C - T that are there
//
// P, the precision: bf16; fp8, products and cache; fp8one, the same without the second level of sums
// (attention_one_level.h); fp8kv, a cache whose products are in f16. Heads are 32:8 where none are
// named.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/attention.h"

namespace bough {

enum class AttentionPrecision { kBF16, kFp8, kFp8OneLevel, kFp8Kv };

struct AttentionCase {
  std::string kind, shape;
  AttentionPrecision precision = AttentionPrecision::kBF16;
  int num_heads = 32, num_kv_heads = 8, head_dim = 128;
  int num_q = 1;                        // of each sequence, the last of its keys' positions
  std::vector<SharedNode> nodes = {};   // as PagedAttentionParams; parents before children
  std::vector<int32_t> seqlens = {};    // [num_seqs] keys
  std::vector<int32_t> own_begin = {};  // [num_seqs] keys
  bool compares = false;                // time it without its nodes too
  double gate_us = 0;                   // what is meant to be kept, 0 = nothing said
  double gate_over_plain = 0;           // the same as a multiple of the time without nodes

  std::string name() const;      // kind/P/shape
  std::string peer_key() const;  // kind/shape: peers know one precision
  DType kv_dtype() const;
  bool fp8_products() const;
  int num_seqs() const { return static_cast<int>(seqlens.size()); }
  int num_tokens() const { return num_seqs() * num_q; }

  // Of keys that several sequences share, one counts.
  int64_t num_unique_keys() const;
  int64_t kv_bytes() const;  // of the unique keys
  double flops() const;      // of all (query, key) pairs
  // max(bytes / 4.6 TB/s, FLOPs / 774 (bf16, f16) or 1450 TFLOPS (e4m3)): what an H200 reads and
  // multiplies at best. Bytes: the unique keys, q and o.
  double floor_us() const;
};

std::vector<AttentionCase> AttentionCases();

}  // namespace bough
