// One 64x64 tile of y = x w^T held by 128 threads: bf16 by tensor cores, f32 by FMAs.
#pragma once

#include <mma.h>

#include "kernels/cuda/device.cuh"

namespace bough::cuda {

inline constexpr int kTileM = 64, kTileN = 64, kTileK = 32;
inline constexpr int kTileThreads = 128;
// One pack of padding against bank conflicts; rows stay multiples of 16 bytes.
template <typename T>
inline constexpr int kTileStride = kTileK + Pack<T>::kSize;

// The accumulators of a tile, zero at first.
template <typename T>
class TileProduct;

// Each warp holds a 32x32 quarter, as 2x2 fragments.
template <>
class TileProduct<BF16> {
 public:
  __device__ TileProduct() {
#pragma unroll
    for (int i = 0; i < 4; ++i) nvcuda::wmma::fill_fragment(sums_[i / 2][i % 2], 0.0f);
  }

  // += x_tile w_tile^T;  x_tile is [64, 32], w_tile [64, 32], rows kTileStride apart.
  __device__ void Accumulate(const BF16* x_tile, const BF16* w_tile) {
    using namespace nvcuda::wmma;
    fragment<matrix_a, 16, 16, 16, BF16, row_major> x[2];
    fragment<matrix_b, 16, 16, 16, BF16, col_major> w[2];
#pragma unroll
    for (int k = 0; k < kTileK; k += 16) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        load_matrix_sync(x[i], x_tile + (RowBegin() + 16 * i) * kStride + k, kStride);
        load_matrix_sync(w[i], w_tile + (ColumnBegin() + 16 * i) * kStride + k, kStride);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
        mma_sync(sums_[i / 2][i % 2], x[i / 2], w[i % 2], sums_[i / 2][i % 2]);
    }
  }

  // To `out`, [64, 64] f32.
  __device__ void Store(float* out) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float* at = out + (RowBegin() + 16 * (i / 2)) * kTileN + ColumnBegin() + 16 * (i % 2);
      nvcuda::wmma::store_matrix_sync(at, sums_[i / 2][i % 2], kTileN, nvcuda::wmma::mem_row_major);
    }
  }

 private:
  static constexpr int kStride = kTileStride<BF16>;
  static __device__ int RowBegin() { return threadIdx.x / kWarpSize / 2 * 32; }
  static __device__ int ColumnBegin() { return threadIdx.x / kWarpSize % 2 * 32; }

  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sums_[2][2];
};

// Each thread holds rows y0 + 8 i and columns x0 + 16 j: 8x4 sums.
template <>
class TileProduct<float> {
 public:
  __device__ void Accumulate(const float* x_tile, const float* w_tile) {
    for (int k = 0; k < kTileK; ++k) {
      float w[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) w[j] = w_tile[(Column() + 16 * j) * kStride + k];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float x = x_tile[(Row() + 8 * i) * kStride + k];
#pragma unroll
        for (int j = 0; j < 4; ++j) sums_[i][j] += x * w[j];
      }
    }
  }

  __device__ void Store(float* out) const {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      out[(Row() + 8 * (i / 4)) * kTileN + Column() + 16 * (i % 4)] = sums_[i / 4][i % 4];
    }
  }

 private:
  static constexpr int kStride = kTileStride<float>;
  static __device__ int Row() { return threadIdx.x / 16; }
  static __device__ int Column() { return threadIdx.x % 16; }

  float sums_[8][4] = {};
};

}  // namespace bough::cuda
