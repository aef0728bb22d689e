#include "kernels/elementwise.h"

#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "common/check.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd.h"
#include "kernels/kv_layout.h"

namespace bough::cpu {
namespace {

void CheckIsF32(DType t) { CHECK(t == DType::kF32) << "is " << Name(t) << ", the CPU takes f32"; }

float Widen(float x) { return x; }
float Widen(BF16 x) { return BF16ToFloat(x); }

void Narrow(float x, float* out) { *out = x; }
void Narrow(float x, BF16* out) { *out = FloatToBF16(x); }
void Narrow(float x, uint8_t* out) { *out = FloatToE4M3(x); }

template <typename T>
void EmbeddingRows(const EmbeddingParams& p) {
  const T* table = static_cast<const T*>(p.table);
  float* out = static_cast<float*>(p.out);
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    const int64_t id = p.ids[t] >= 0 ? p.ids[t] : p.sampled[-1 - p.ids[t]];
    for (int i = 0; i < p.hidden_size; ++i) {
      out[t * p.hidden_size + i] = Widen(table[id * p.hidden_size + i]);
    }
  }
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
void Append(const float* heads, int slot, const float* scale, const RopeAppendParams& p,
            void* cache) {
  const int64_t block = slot / p.block_size, row = slot % p.block_size;
  for (int64_t h = 0; h < p.num_kv_heads; ++h) {
    T* out =
        static_cast<T*>(cache) + ((block * p.num_kv_heads + h) * p.block_size + row) * p.head_dim;
    const float head_scale = scale == nullptr ? 1 : scale[h];
    for (int i = 0; i < p.head_dim; ++i) Narrow(heads[h * p.head_dim + i] / head_scale, out + i);
  }
}

// Values of an e4m3 cache: kv_layout.h.
void AppendE4M3Values(const float* heads, int slot, const RopeAppendParams& p) {
  const int64_t block = slot / p.block_size;
  const int column = ValueColumn(slot % p.block_size);
  for (int64_t h = 0; h < p.num_kv_heads; ++h) {
    uint8_t* out = static_cast<uint8_t*>(p.v_cache) +
                   (block * p.num_kv_heads + h) * p.head_dim * p.block_size + column;
    const float head_scale = p.v_scale == nullptr ? 1 : p.v_scale[h];
    for (int64_t i = 0; i < p.head_dim; ++i) {
      Narrow(heads[h * p.head_dim + i] / head_scale, out + i * p.block_size);
    }
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
    Append<T>(k, p.slot_mapping[t], p.k_scale, p, p.k_cache);
    if constexpr (std::is_same_v<T, uint8_t>) {
      AppendE4M3Values(v, p.slot_mapping[t], p);
    } else {
      Append<T>(v, p.slot_mapping[t], p.v_scale, p, p.v_cache);
    }
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

void RopeAppend(const RopeAppendParams& p) {
  CheckIsF32(p.dtype);
  CHECK_EQ(p.head_dim % 2, 0) << "RoPE rotates pairs";
  switch (p.kv_dtype) {
    case DType::kF32:
      return RopeAppendTokens<float>(p);
    case DType::kBF16:
      return RopeAppendTokens<BF16>(p);
    case DType::kF8E4M3:
      CHECK_EQ(p.block_size % 16, 0) << "an e4m3 cache's blocks are of a multiple of 16 keys";
      return RopeAppendTokens<uint8_t>(p);
    default:
      CHECK(false) << "the cache is " << Name(p.kv_dtype) << ", the CPU takes f32, bf16 or f8_e4m3";
  }
}

void SiluMul(const SiluMulParams& p) {
  CheckIsF32(p.dtype);
  const bool quantize = p.out_dtype == DType::kF8E4M3;
  if (!quantize) CheckIsF32(p.out_dtype);
  const int num_rows = p.num_rows == nullptr ? p.num_tokens : *p.num_rows;
  CHECK_LE(num_rows, p.num_tokens);
  ParallelFor(num_rows, 20.0 * num_rows * p.size, [&](int t) {
    const float* gate = static_cast<const float*>(p.gate_up) + int64_t{t} * 2 * p.size;
    const float* up = gate + p.size;
    std::vector<float> unrounded(quantize ? p.size : 0);
    const int64_t offset = int64_t{t} * p.size;
    float* row = quantize ? unrounded.data() : static_cast<float*>(p.out) + offset;
    int i = 0;
    for (; i + kLanes <= p.size; i += kLanes) {
      Store(row + i, SiluTimes(Load(gate + i), Load(up + i)));
    }
    const int rest = p.size - i;
    StorePartial(row + i, SiluTimes(LoadPartial(gate + i, rest), LoadPartial(up + i, rest)), rest);
    if (quantize) {
      p.out_scale[t] = QuantizeRow(row, p.size, static_cast<uint8_t*>(p.out) + offset);
    }
  });
}

void Quantize(const QuantizeParams& p) {
  CheckIsF32(p.dtype);
  ParallelFor(static_cast<int>(p.num_rows), 10.0 * p.num_rows * p.size, [&](int r) {
    const int64_t offset = int64_t{r} * p.size;
    p.scale[r] = QuantizeRow(static_cast<const float*>(p.x) + offset, p.size,
                             static_cast<uint8_t*>(p.out) + offset);
  });
}

namespace {

// Sum of (value - x)^2 were the row quantised with this scale.
float SquaredError(const float* x, int size, float inverse, float scale) {
  float error = 0;
  for (int i = 0; i < size; ++i) {
    const float difference = E4M3ToFloat(FloatToE4M3(x[i] * inverse)) * scale - x[i];
    error += difference * difference;
  }
  return error;
}

}  // namespace

void QuantizeWeights(const QuantizeParams& p) {
  CheckIsF32(p.dtype);
  ParallelFor(static_cast<int>(p.num_rows), 200.0 * p.num_rows * p.size, [&](int r) {
    const float* row = static_cast<const float*>(p.x) + int64_t{r} * p.size;
    const float amax = AbsMax(row, p.size);
    float best_step = 1, least_error = INFINITY;
    for (int j = 0; j < kNumScaleSteps; ++j) {
      const float step = 1 + static_cast<float>(j) / kNumScaleSteps;
      const float error =
          SquaredError(row, p.size, InverseScale(amax) / step, amax / kMaxE4M3 * step);
      if (error < least_error) {
        least_error = error;
        best_step = step;
      }
    }
    uint8_t* out = static_cast<uint8_t*>(p.out) + int64_t{r} * p.size;
    for (int i = 0; i < p.size; ++i)
      out[i] = FloatToE4M3(row[i] * (InverseScale(amax) / best_step));
    p.scale[r] = amax / kMaxE4M3 * best_step;
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
