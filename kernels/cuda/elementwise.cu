// One thread block a token, threads over the row: every access is coalesced, nothing is read twice
// except the norm's row, which comes back from L1. Scalar accesses; bound by memory.
#include "kernels/cuda/device.cuh"
#include "kernels/elementwise.h"

namespace bough::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T, typename Table>
__global__ void EmbeddingKernel(EmbeddingParams p) {
  const int64_t t = blockIdx.x;
  const Table* row = static_cast<const Table*>(p.table) + int64_t{p.ids[t]} * p.hidden_size;
  T* out = static_cast<T*>(p.out) + t * p.hidden_size;
  for (int i = threadIdx.x; i < p.hidden_size; i += blockDim.x) {
    out[i] = FromFloat<T>(ToFloat(row[i]));
  }
}

template <typename T>
__global__ void AddRmsNormKernel(AddRmsNormParams p) {
  const int64_t offset = int64_t{blockIdx.x} * p.hidden_size;
  T* residual = static_cast<T*>(p.residual) + offset;
  const T* x = p.x == nullptr ? nullptr : static_cast<const T*>(p.x) + offset;
  const T* weight = static_cast<const T*>(p.weight);
  T* out = static_cast<T*>(p.out) + offset;

  // Each thread meets the same elements in both loops, so out may alias x.
  float sum = 0;
  for (int i = threadIdx.x; i < p.hidden_size; i += blockDim.x) {
    if (x != nullptr) residual[i] = FromFloat<T>(ToFloat(residual[i]) + ToFloat(x[i]));
    const float r = ToFloat(residual[i]);
    sum += r * r;
  }
  sum = BlockReduce(sum, Add{}, 0.0f);
  const float scale = 1.0f / sqrtf(sum / p.hidden_size + p.eps);
  for (int i = threadIdx.x; i < p.hidden_size; i += blockDim.x) {
    out[i] = FromFloat<T>(ToFloat(residual[i]) * scale * ToFloat(weight[i]));
  }
}

// Threads hold (head, i) pairs of the rotated heads, then elements of v.
template <typename T, typename KV>
__global__ void RopeAppendKernel(RopeAppendParams p) {
  extern __shared__ float2 rotation[];  // [head_dim / 2] cosine, sine
  const int64_t t = blockIdx.x;
  const int half = p.head_dim / 2;
  const int num_rotated = p.num_heads + p.num_kv_heads;
  T* row = static_cast<T*>(p.qkv) + t * (num_rotated + p.num_kv_heads) * p.head_dim;
  const int slot = p.slot_mapping[t];
  // Element 0 of the slot in KV head 0; the next head's is block_size rows further.
  const int64_t cache_row =
      (int64_t{slot / p.block_size} * p.num_kv_heads) * p.block_size + slot % p.block_size;
  const auto cache_index = [&](int head, int i) {
    return (cache_row + int64_t{head} * p.block_size) * p.head_dim + i;
  };

  for (int i = threadIdx.x; i < half; i += blockDim.x) {
    // The power in double, rounded once: the frequencies are then the CPU twin's bit by bit, and
    // the angle of a far position does not drift from it.
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(p.head_dim);
    const float inv_freq =
        1.0f / static_cast<float>(pow(static_cast<double>(p.rope_theta), exponent));
    const float angle = static_cast<float>(p.positions[t]) * inv_freq;
    sincosf(angle, &rotation[i].y, &rotation[i].x);
  }
  __syncthreads();

  KV* k_cache = static_cast<KV*>(p.k_cache);
  for (int j = threadIdx.x; j < num_rotated * half; j += blockDim.x) {
    const int head = j / half, i = j % half;
    T& a = row[head * p.head_dim + i];
    T& b = row[head * p.head_dim + i + half];
    const float c = rotation[i].x, s = rotation[i].y;
    const float x = ToFloat(a), y = ToFloat(b);
    const float rotated_a = x * c - y * s, rotated_b = y * c + x * s;
    a = FromFloat<T>(rotated_a);
    b = FromFloat<T>(rotated_b);
    if (head < p.num_heads || slot < 0) continue;
    k_cache[cache_index(head - p.num_heads, i)] = FromFloat<KV>(rotated_a);
    k_cache[cache_index(head - p.num_heads, i + half)] = FromFloat<KV>(rotated_b);
  }
  if (slot < 0) return;

  KV* v_cache = static_cast<KV*>(p.v_cache);
  const T* v = row + num_rotated * p.head_dim;
  for (int j = threadIdx.x; j < p.num_kv_heads * p.head_dim; j += blockDim.x) {
    v_cache[cache_index(j / p.head_dim, j % p.head_dim)] = FromFloat<KV>(ToFloat(v[j]));
  }
}

template <typename T>
__global__ void SiluMulKernel(SiluMulParams p) {
  const T* gate = static_cast<const T*>(p.gate_up) + int64_t{blockIdx.x} * 2 * p.size;
  const T* up = gate + p.size;
  T* out = static_cast<T*>(p.out) + int64_t{blockIdx.x} * p.size;
  for (int i = threadIdx.x; i < p.size; i += blockDim.x) {
    const float g = ToFloat(gate[i]);
    out[i] = FromFloat<T>(g / (1.0f + expf(-g)) * ToFloat(up[i]));
  }
}

// Unit is the widest type that divides a block's bytes. Grid: (copy, cache).
template <typename Unit>
__global__ void CopyBlocksKernel(CopyBlocksParams p) {
  Unit* cache = static_cast<Unit*>(blockIdx.y == 0 ? p.k_cache : p.v_cache);
  const int64_t num_units = p.block_bytes / sizeof(Unit);
  const Unit* src = cache + p.src[blockIdx.x] * num_units;
  Unit* dst = cache + p.dst[blockIdx.x] * num_units;
  for (int64_t i = threadIdx.x; i < num_units; i += blockDim.x) dst[i] = src[i];
}

}  // namespace

void Embedding(const EmbeddingParams& p, Stream stream) {
  if (p.num_tokens == 0) return;
  DispatchDType(p.dtype, "out", [&]<typename T>() {
    DispatchDType(p.table_dtype, "table", [&]<typename Table>() {
      EmbeddingKernel<T, Table><<<p.num_tokens, kThreads, 0, stream>>>(p);
    });
  });
  CUDA_CHECK(cudaGetLastError());
}

void AddRmsNorm(const AddRmsNormParams& p, Stream stream) {
  CHECK(p.out != p.residual) << "out may not alias residual";
  if (p.num_tokens == 0) return;
  DispatchDType(p.dtype, "x", [&]<typename T>() {
    AddRmsNormKernel<T><<<p.num_tokens, kThreads, 0, stream>>>(p);
  });
  CUDA_CHECK(cudaGetLastError());
}

void RopeAppend(const RopeAppendParams& p, Stream stream) {
  CHECK_EQ(p.head_dim % 2, 0) << "RoPE rotates pairs";
  if (p.num_tokens == 0) return;
  const size_t shared_bytes = p.head_dim / 2 * sizeof(float2);
  DispatchDType(p.dtype, "qkv", [&]<typename T>() {
    DispatchDType(p.kv_dtype, "the cache", [&]<typename KV>() {
      RopeAppendKernel<T, KV><<<p.num_tokens, kThreads, shared_bytes, stream>>>(p);
    });
  });
  CUDA_CHECK(cudaGetLastError());
}

void SiluMul(const SiluMulParams& p, Stream stream) {
  if (p.num_tokens == 0) return;
  DispatchDType(p.dtype, "gate_up",
                [&]<typename T>() { SiluMulKernel<T><<<p.num_tokens, kThreads, 0, stream>>>(p); });
  CUDA_CHECK(cudaGetLastError());
}

void CopyBlocks(const CopyBlocksParams& p, Stream stream) {
  if (p.num_copies == 0) return;
  const dim3 grid(p.num_copies, 2);
  if (p.block_bytes % sizeof(uint4) == 0) {
    CopyBlocksKernel<uint4><<<grid, kThreads, 0, stream>>>(p);
  } else {
    CopyBlocksKernel<char><<<grid, kThreads, 0, stream>>>(p);
  }
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace bough::cuda
