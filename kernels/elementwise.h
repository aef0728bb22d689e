// The ops that touch each element once: embedding, norm, RoPE and KV append, SiLU gate, quantise,
// block copies. All are bound by memory: bytes read plus bytes written over the read ceiling is
// their floor.
//
// Pointers are to `dtype` elements unless a comment says otherwise; `dtype` is f32 on the CPU, bf16
// or f32 on CUDA. Where an op has an out_dtype, f8_e4m3 is allowed: rows are quantised as dtype.h
// says, each with its own scale in out_scale, from f32 values that were not rounded in between.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/stream.h"

namespace bough {

// out[t, :] = table[ids[t], :]. A negative id stands for a token that the step before sampled and
// the host has not seen yet: sampled[-1 - ids[t]].
struct EmbeddingParams {
  const int32_t* ids = nullptr;      // [num_tokens]
  const int32_t* sampled = nullptr;  // may be nullptr: no id is negative
  const void* table = nullptr;       // [vocab_size, hidden_size] table_dtype
  void* out = nullptr;               // [num_tokens, hidden_size]
  int num_tokens = 0, hidden_size = 0;
  DType dtype = DType::kF32, table_dtype = DType::kF32;
};

// residual += x (when x is given);  out = residual / sqrt(mean(residual^2) + eps) * weight.
// RMSNorm, arXiv 1910.07467 eq. 4. out may alias x, not residual. Statistics in f32, of the
// residual as it is stored.
// With row_of_pair, x holds experts' rows and MoeCombine (moe.h) is part of the op:
//   residual[t] += sum over j ascending of expert_weights[t, j] * x[row_of_pair[t, j]]
struct AddRmsNormParams {
  const void* x = nullptr;        // [num_tokens, hidden_size]; may be nullptr: nothing is added
  void* residual = nullptr;       // [num_tokens, hidden_size], read and written
  const float* weight = nullptr;  // [hidden_size]
  void* out = nullptr;            // [num_tokens, hidden_size] out_dtype
  float* out_scale = nullptr;     // [num_tokens] when out is f8_e4m3
  int num_tokens = 0, hidden_size = 0;
  float eps = 1e-5f;
  DType dtype = DType::kF32, out_dtype = DType::kF32;
  const int32_t* row_of_pair = nullptr;   // [num_tokens, top_k]; nullptr: x has a row a token
  const float* expert_weights = nullptr;  // [num_tokens, top_k]
  int top_k = 0;
};

// Rotates q and k by their position (pairs (i, i + head_dim/2), as Hugging Face checkpoints are
// trained), in place, and puts k and v into the cache. RoFormer, arXiv 2104.09864 eq. 34:
//   angle(p, i) = p * theta^(-2i / head_dim),  i in [0, head_dim/2)
// Angles in f32. A slot is block * block_size + row; no two tokens share one. What is stored is
// k / k_scale and v / v_scale: attention multiplies them back in.
struct RopeAppendParams {
  void* qkv = nullptr;                    // [num_tokens, (num_heads + 2 num_kv_heads) * head_dim]
  const int32_t* positions = nullptr;     // [num_tokens]
  const int32_t* slot_mapping = nullptr;  // [num_tokens]; -1 = do not store
  void* k_cache = nullptr;         // [num_blocks, num_kv_heads, block_size, head_dim] kv_dtype
  void* v_cache = nullptr;         // as k_cache; e4m3: as kv_layout.h says
  const float* k_scale = nullptr;  // [num_kv_heads]; nullptr: 1
  const float* v_scale = nullptr;  // as k_scale
  int num_tokens = 0, num_heads = 0, num_kv_heads = 0, head_dim = 0, block_size = 0;
  float rope_theta = 1e6f;
  DType dtype = DType::kF32, kv_dtype = DType::kF32;
};

// out[t, i] = silu(gate_up[t, i]) * gate_up[t, size + i];  silu(x) = x / (1 + exp(-x)).
// The experts' rows are counted on the device: with num_rows, only that many are computed.
struct SiluMulParams {
  const void* gate_up = nullptr;      // [num_tokens, 2 * size], gate half first
  void* out = nullptr;                // [num_tokens, size] out_dtype
  float* out_scale = nullptr;         // [num_tokens] when out is f8_e4m3
  const int32_t* num_rows = nullptr;  // at most num_tokens; nullptr: num_tokens
  int num_tokens = 0, size = 0;
  DType dtype = DType::kF32, out_dtype = DType::kF32;
};

// Quantize: each row of x to f8_e4m3, as dtype.h says.
// QuantizeWeights: with the best of kNumScaleSteps scales
//   (amax / 448) (1 + j / kNumScaleSteps),   j in [0, kNumScaleSteps),
// that with the least sum of (value - x)^2; the lowest j of equals. An e4m3 number's error depends
// on where in its octave it lies, so moving the octaves to fit the row costs nothing later; the
// demo model's mean KLD falls from 0.0032 to 0.0030.
inline constexpr int kNumScaleSteps = 16;
struct QuantizeParams {
  const void* x = nullptr;  // [num_rows, size]
  void* out = nullptr;      // [num_rows, size] f8_e4m3
  float* scale = nullptr;   // [num_rows]
  int64_t num_rows = 0;
  int size = 0;
  DType dtype = DType::kF32;
};

// cache[dst[i]] = cache[src[i]] for both caches; sources and destinations are disjoint sets.
struct CopyBlocksParams {
  void* k_cache = nullptr;  // [num_blocks, num_kv_heads, block_size, head_dim] kv_dtype
  void* v_cache = nullptr;
  const int32_t* src = nullptr;  // [num_copies] block ids
  const int32_t* dst = nullptr;  // [num_copies]
  int num_copies = 0;
  int64_t block_bytes = 0;  // of one block in one of the caches
};

namespace cpu {
void Embedding(const EmbeddingParams&);
void AddRmsNorm(const AddRmsNormParams&);
void RopeAppend(const RopeAppendParams&);
void SiluMul(const SiluMulParams&);
void Quantize(const QuantizeParams&);
void QuantizeWeights(const QuantizeParams&);
void CopyBlocks(const CopyBlocksParams&);
}  // namespace cpu

namespace cuda {
void Embedding(const EmbeddingParams&, Stream);
void AddRmsNorm(const AddRmsNormParams&, Stream);
void RopeAppend(const RopeAppendParams&, Stream);
void SiluMul(const SiluMulParams&, Stream);
void Quantize(const QuantizeParams&, Stream);
void QuantizeWeights(const QuantizeParams&, Stream);
void CopyBlocks(const CopyBlocksParams&, Stream);
}  // namespace cuda

}  // namespace bough
