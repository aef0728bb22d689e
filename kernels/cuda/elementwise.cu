// One thread block a row or token, eight elements an access, rows in registers where they are needed
// twice. All are bound by memory.
#include "kernels/cuda/rows.cuh"
#include "kernels/elementwise.h"

namespace bough::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T, typename Table>
__global__ void EmbeddingKernel(EmbeddingParams p) {
  AllowNext();
  WaitForPrevious();
  const int64_t t = blockIdx.x;
  int64_t id = p.ids[t];
  if (id < 0) id = p.sampled[-1 - id];
  const Table* row = static_cast<const Table*>(p.table) + id * p.hidden_size;
  T* out = static_cast<T*>(p.out) + t * p.hidden_size;
  for (int i = threadIdx.x * kVec; i < p.hidden_size; i += blockDim.x * kVec) {
    StoreVec(out + i, LoadVec(row + i));
  }
}

constexpr int kMaxSiluThreads = 1024;
constexpr int kFewRows = 264;  // 2 for each SM of an H200

template <typename T, typename Out, int kVecs>
__global__ void __launch_bounds__(kMaxSiluThreads) SiluMulKernel(SiluMulParams p) {
  constexpr bool kQuantize = sizeof(Out) == 1;
  AllowNext();
  WaitForPrevious();
  const int64_t r = blockIdx.x;
  const int num_rows = p.num_rows == nullptr ? p.num_tokens : *p.num_rows;
  // Few thread blocks do not wait for the count: the row is there to be read, if it counts or not.
  if (gridDim.x > kFewRows && r >= num_rows) return;
  const T* gate = static_cast<const T*>(p.gate_up) + r * 2 * p.size;
  const T* up = gate + p.size;
  Out* out = static_cast<Out*>(p.out) + r * p.size;
  const auto column = [](int c) { return static_cast<int>(c * blockDim.x + threadIdx.x) * kVec; };

  RawVec<T> raw_gate[kVecs], raw_up[kVecs];
#pragma unroll
  for (int c = 0; c < kVecs; ++c) {
    if (column(c) >= p.size) continue;
    raw_gate[c] = LoadRaw(gate + column(c));
    raw_up[c] = LoadRaw(up + column(c));
  }
  if (r >= num_rows) return;

  Vec row[kVecs];
  float amax = 0;
#pragma unroll
  for (int c = 0; c < kVecs; ++c) {
    if (column(c) >= p.size) continue;
    const Vec g = Widen(raw_gate[c]), u = Widen(raw_up[c]);
    // Approximate exponential and quotient: within 2e-6 of the exact ones, a third of the time.
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      row[c].v[k] = __fdividef(g.v[k], 1.0f + __expf(-g.v[k])) * u.v[k];
    }
    amax = AbsMax(amax, row[c]);
  }
  float inverse_scale = 1;
  if constexpr (kQuantize) {
    amax = BlockReduce(amax, Max{}, 0.0f);
    inverse_scale = InverseScale(amax);
    if (threadIdx.x == 0) p.out_scale[r] = Scale(amax);
  }
#pragma unroll
  for (int c = 0; c < kVecs; ++c) {
    if (column(c) < p.size) StoreVec(out + column(c), kQuantize ? row[c] * inverse_scale : row[c]);
  }
}

constexpr int kMaxQuantizeThreads = 512;

// The row waits in its own dtype: half the registers of f32, more thread blocks an SM.
template <typename T, int kVecs>
__global__ void __launch_bounds__(kMaxQuantizeThreads) QuantizeKernel(QuantizeParams p) {
  AllowNext();
  WaitForPrevious();
  const int64_t r = blockIdx.x;
  const T* x = static_cast<const T*>(p.x) + r * p.size;
  E4M3* out = static_cast<E4M3*>(p.out) + r * p.size;

  RawVec<T> row[kVecs];
  float amax = 0;
#pragma unroll
  for (int c = 0; c < kVecs; ++c) {
    const int i = (c * blockDim.x + threadIdx.x) * kVec;
    if (i < p.size) row[c] = LoadRaw(x + i);
  }
#pragma unroll
  for (int c = 0; c < kVecs; ++c) {
    const int i = (c * blockDim.x + threadIdx.x) * kVec;
    if (i < p.size) amax = AbsMax(amax, Widen(row[c]));
  }
  amax = BlockReduce(amax, Max{}, 0.0f);
  const float inverse_scale = InverseScale(amax);
  if (threadIdx.x == 0) p.scale[r] = Scale(amax);
#pragma unroll
  for (int c = 0; c < kVecs; ++c) {
    const int i = (c * blockDim.x + threadIdx.x) * kVec;
    if (i < p.size) StoreVec(out + i, Widen(row[c]) * inverse_scale);
  }
}

// Unit is the widest type that divides a block's bytes. Grid: (copy, cache, part of the block).
template <typename Unit>
__global__ void CopyBlocksKernel(CopyBlocksParams p) {
  AllowNext();
  WaitForPrevious();
  Unit* cache = static_cast<Unit*>(blockIdx.y == 0 ? p.k_cache : p.v_cache);
  const int64_t num_units = p.block_bytes / sizeof(Unit);
  const Unit* src = cache + p.src[blockIdx.x] * num_units;
  Unit* dst = cache + p.dst[blockIdx.x] * num_units;
  const int64_t stride = int64_t{blockDim.x} * gridDim.z;
  for (int64_t i = blockIdx.z * blockDim.x + threadIdx.x; i < num_units; i += stride) {
    dst[i] = src[i];
  }
}

}  // namespace

void Embedding(const EmbeddingParams& p, Stream stream) {
  if (p.num_tokens == 0) return;
  CHECK_EQ(p.hidden_size % kVec, 0);
  DispatchDType(p.dtype, "out", [&]<typename T>() {
    DispatchDType(p.table_dtype, "table", [&]<typename Table>() {
      Launch(EmbeddingKernel<T, Table>, p.num_tokens, kThreads, 0, stream, p);
    });
  });
}

void SiluMul(const SiluMulParams& p, Stream stream) {
  if (p.num_tokens == 0) return;
  const RowConfig config = PickRowConfig(p.size, kMaxSiluThreads);
  DispatchOut(p.dtype, p.out_dtype, "gate_up", [&]<typename T, typename Out>() {
    DispatchRowConfig(config, [&]<int kVecs>() {
      Launch(SiluMulKernel<T, Out, kVecs>, p.num_tokens, config.num_threads, 0, stream, p);
    });
  });
}

void Quantize(const QuantizeParams& p, Stream stream) {
  if (p.num_rows == 0) return;
  CHECK_LE(p.num_rows, INT32_MAX);
  // Two vectors a thread at least: short rows would leave too few bytes under way.
  const RowConfig config = PickRowConfig(p.size, p.size <= 4096 ? 256 : kMaxQuantizeThreads);
  DispatchDType(p.dtype, "x", [&]<typename T>() {
    DispatchRowConfig(config, [&]<int kVecs>() {
      Launch(QuantizeKernel<T, kVecs>, static_cast<unsigned>(p.num_rows), config.num_threads, 0,
             stream, p);
    });
  });
}

void CopyBlocks(const CopyBlocksParams& p, Stream stream) {
  if (p.num_copies == 0) return;
  const dim3 grid(p.num_copies, 2, 8);
  const bool wide = p.block_bytes % sizeof(uint4) == 0;
  Launch(wide ? CopyBlocksKernel<uint4> : CopyBlocksKernel<char>, grid, kThreads, 0, stream, p);
}

}  // namespace bough::cuda
