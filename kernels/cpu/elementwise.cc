#include "kernels/elementwise.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "common/check.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd.h"

namespace bough::cpu {
namespace {

void CheckIsF32(DType t) { CHECK(t == DType::kF32) << "is " << Name(t) << ", the CPU takes f32"; }

float Widen(float x) { return x; }
float Widen(BF16 x) { return BF16ToFloat(x); }

void Narrow(float x, float* out) { *out = x; }
void Narrow(float x, BF16* out) { *out = FloatToBF16(x); }

template <typename T>
void EmbeddingRows(const EmbeddingParams& p) {
  const T* table = static_cast<const T*>(p.table);
  float* out = static_cast<float*>(p.out);
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    for (int i = 0; i < p.hidden_size; ++i) {
      out[t * p.hidden_size + i] = Widen(table[int64_t{p.ids[t]} * p.hidden_size + i]);
    }
  }
}

float SumOfSquares(const float* x, int size) {
  F32x8 sum = {};
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) sum += Load(x + i) * Load(x + i);
  const F32x8 tail = LoadPartial(x + i, size - i);
  sum += tail * tail;
  return Sum(sum);
}

// As Hugging Face computes them, in f32: 1 / theta^(2i / head_dim).
std::vector<float> InverseFrequencies(float theta, int head_dim) {
  std::vector<float> inv_freq(head_dim / 2);
  for (int i = 0; i < head_dim / 2; ++i) {
    inv_freq[i] = 1.0f / std::pow(theta, static_cast<float>(2 * i) / static_cast<float>(head_dim));
  }
  return inv_freq;
}

// The first `num_heads` heads of x, each pair (i, i + head_dim/2) by the angle position *
// inv_freq[i].
void Rotate(float* x, int num_heads, int head_dim, int position, const float* inv_freq) {
  const int half = head_dim / 2;
  for (int i = 0; i < half; ++i) {
    const float angle = static_cast<float>(position) * inv_freq[i];
    const float c = std::cos(angle), s = std::sin(angle);
    for (int h = 0; h < num_heads; ++h) {
      float& a = x[h * head_dim + i];
      float& b = x[h * head_dim + i + half];
      const float rotated_a = a * c - b * s;
      b = b * c + a * s;
      a = rotated_a;
    }
  }
}

template <typename T>
void Append(const float* heads, int slot, const RopeAppendParams& p, void* cache) {
  const int64_t block = slot / p.block_size, row = slot % p.block_size;
  for (int64_t h = 0; h < p.num_kv_heads; ++h) {
    T* out =
        static_cast<T*>(cache) + ((block * p.num_kv_heads + h) * p.block_size + row) * p.head_dim;
    for (int i = 0; i < p.head_dim; ++i) Narrow(heads[h * p.head_dim + i], out + i);
  }
}

template <typename T>
void RopeAppendTokens(const RopeAppendParams& p) {
  const std::vector<float> inv_freq = InverseFrequencies(p.rope_theta, p.head_dim);
  const int64_t row_size = (p.num_heads + 2 * p.num_kv_heads) * p.head_dim;
  // A sine and a cosine for each of the head_dim/2 angles cost about 64 FLOPs' time.
  ParallelFor(p.num_tokens, 64.0 * p.num_tokens * p.head_dim / 2, [&](int t) {
    float* q = static_cast<float*>(p.qkv) + t * row_size;
    const float* k = q + p.num_heads * p.head_dim;
    const float* v = k + p.num_kv_heads * p.head_dim;
    Rotate(q, p.num_heads + p.num_kv_heads, p.head_dim, p.positions[t], inv_freq.data());
    if (p.slot_mapping[t] == -1) return;
    Append<T>(k, p.slot_mapping[t], p, p.k_cache);
    Append<T>(v, p.slot_mapping[t], p, p.v_cache);
  });
}

// silu(gate) * up
F32x8 SiluTimes(F32x8 gate, F32x8 up) { return gate / (1.0f + Exp(-gate)) * up; }

}  // namespace

void Embedding(const EmbeddingParams& p) {
  CheckIsF32(p.dtype);
  switch (p.table_dtype) {
    case DType::kF32:
      return EmbeddingRows<float>(p);
    case DType::kBF16:
      return EmbeddingRows<BF16>(p);
    default:
      CHECK(false) << "table is " << Name(p.table_dtype) << ", the CPU takes f32 or bf16";
  }
}

void AddRmsNorm(const AddRmsNormParams& p) {
  CheckIsF32(p.dtype);
  const float* weight = static_cast<const float*>(p.weight);
  ParallelFor(p.num_tokens, 4.0 * p.num_tokens * p.hidden_size, [&](int t) {
    const int64_t row = int64_t{t} * p.hidden_size;
    float* residual = static_cast<float*>(p.residual) + row;
    float* out = static_cast<float*>(p.out) + row;
    if (p.x != nullptr) {
      const float* x = static_cast<const float*>(p.x) + row;
      for (int i = 0; i < p.hidden_size; ++i) residual[i] += x[i];
    }
    const float mean_square = SumOfSquares(residual, p.hidden_size) / p.hidden_size;
    const float scale = 1.0f / std::sqrt(mean_square + p.eps);
    for (int i = 0; i < p.hidden_size; ++i) out[i] = residual[i] * scale * weight[i];
  });
}

void RopeAppend(const RopeAppendParams& p) {
  CheckIsF32(p.dtype);
  CHECK_EQ(p.head_dim % 2, 0) << "RoPE rotates pairs";
  switch (p.kv_dtype) {
    case DType::kF32:
      return RopeAppendTokens<float>(p);
    case DType::kBF16:
      return RopeAppendTokens<BF16>(p);
    default:
      CHECK(false) << "the cache is " << Name(p.kv_dtype) << ", the CPU takes f32 or bf16";
  }
}

void SiluMul(const SiluMulParams& p) {
  CheckIsF32(p.dtype);
  ParallelFor(p.num_tokens, 20.0 * p.num_tokens * p.size, [&](int t) {
    const float* gate = static_cast<const float*>(p.gate_up) + int64_t{t} * 2 * p.size;
    const float* up = gate + p.size;
    float* out = static_cast<float*>(p.out) + int64_t{t} * p.size;
    int i = 0;
    for (; i + kLanes <= p.size; i += kLanes) {
      Store(out + i, SiluTimes(Load(gate + i), Load(up + i)));
    }
    const int rest = p.size - i;
    StorePartial(out + i, SiluTimes(LoadPartial(gate + i, rest), LoadPartial(up + i, rest)), rest);
  });
}

void CopyBlocks(const CopyBlocksParams& p) {
  for (int i = 0; i < p.num_copies; ++i) {
    for (void* cache : {p.k_cache, p.v_cache}) {
      char* bytes = static_cast<char*>(cache);
      std::memcpy(bytes + p.dst[i] * p.block_bytes, bytes + p.src[i] * p.block_bytes,
                  p.block_bytes);
    }
  }
}

}  // namespace bough::cpu
