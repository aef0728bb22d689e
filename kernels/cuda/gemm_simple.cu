// Products of any shape in f32 or bf16, for what the tiled kernel does not take: tests' and demo
// models' sizes. A thread block makes a 64x64 tile of y, stepping through k by 32 via shared memory.
// Nothing is split over k, so a row's sum has one order whatever rows stand beside it, as on the CPU.
#include "kernels/cuda/gemm_config.h"
#include "kernels/cuda/gemm_tile.cuh"

namespace bough::cuda {
namespace {

// Rows [row_begin, row_end) of y, at most kTileM of them, all of one expert.
struct RowTile {
  int expert, row_begin, row_end;
};

// Tiles are numbered expert by expert; false for indices past the last. Offsets are known on the
// device only, so the grid is an upper bound.
__device__ bool FindRowTile(const GroupedGemmParams& p, int index, RowTile& tile) {
  if (p.expert_offsets == nullptr) {
    tile = {0, index * kTileM, min((index + 1) * kTileM, p.num_rows)};
    return true;
  }
  for (int e = 0; e < p.num_experts; ++e) {
    const int begin = p.expert_offsets[e], end = p.expert_offsets[e + 1];
    const int num_tiles = CeilDiv(end - begin, kTileM);
    if (index < num_tiles) {
      tile = {e, begin + index * kTileM, min(begin + (index + 1) * kTileM, end)};
      return true;
    }
    index -= num_tiles;
  }
  return false;
}

// Columns [k_begin, k_begin + 32) of one row of k elements into `out`, zeros past the end or when
// row is nullptr. `packed`: rows are multiples of 16 bytes.
template <typename T>
__device__ void LoadSlice(const T* row, int k, int k_begin, int pack, bool packed, T* out) {
  const int at = k_begin + pack * Pack<T>::kSize;
  Pack<T> values;
  if (row != nullptr && packed && at < k) {
    values = LoadPack(row + at);
  } else {
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; ++i) {
      values.v[i] = row != nullptr && at + i < k ? row[at + i] : FromFloat<T>(0);
    }
  }
  *reinterpret_cast<Pack<T>*>(out + pack * Pack<T>::kSize) = values;
}

// Grid: (tiles of n, tiles of rows).
template <typename T, typename Out>
__global__ void __launch_bounds__(kTileThreads) GroupedGemmKernel(GroupedGemmParams p) {
  constexpr int kPacksPerRow = kTileK / Pack<T>::kSize;
  __shared__ alignas(32) T x_tile[kTileM * kTileStride<T>];
  __shared__ alignas(32) T w_tile[kTileN * kTileStride<T>];
  __shared__ alignas(32) float y_tile[kTileM * kTileN];
  AllowNext();
  WaitForPrevious();
  RowTile tile;
  if (!FindRowTile(p, blockIdx.y, tile)) return;
  const int n_begin = blockIdx.x * kTileN;
  const bool packed = p.k % Pack<T>::kSize == 0;
  const T* x = static_cast<const T*>(p.x);
  const T* w = static_cast<const T*>(p.w) + int64_t{tile.expert} * p.n * p.k;
  const auto x_row = [&](int i) -> const T* {
    const int row = tile.row_begin + i;
    if (row >= tile.row_end) return nullptr;
    return x + int64_t{row} * p.k;
  };
  const auto w_row = [&](int i) -> const T* {
    return n_begin + i < p.n ? w + int64_t{n_begin + i} * p.k : nullptr;
  };

  TileProduct<T> product;
  for (int k = 0; k < p.k; k += kTileK) {
    for (int j = threadIdx.x; j < kTileM * kPacksPerRow; j += kTileThreads) {
      const int i = j / kPacksPerRow, pack = j % kPacksPerRow;
      LoadSlice(x_row(i), p.k, k, pack, packed, x_tile + i * kTileStride<T>);
      LoadSlice(w_row(i), p.k, k, pack, packed, w_tile + i * kTileStride<T>);
    }
    __syncthreads();
    product.Accumulate(x_tile, w_tile);
    __syncthreads();
  }

  product.Store(y_tile);
  __syncthreads();
  Out* y = static_cast<Out*>(p.y);
  for (int j = threadIdx.x; j < kTileM * kTileN; j += kTileThreads) {
    const int row = tile.row_begin + j / kTileN, n = n_begin + j % kTileN;
    if (row < tile.row_end && n < p.n) y[int64_t{row} * p.n + n] = FromFloat<Out>(y_tile[j]);
  }
}

template <typename T, typename Out>
void LaunchSimple(const GroupedGemmParams& p, Stream stream) {
  for (const void* operand : {p.x, p.w}) {
    CHECK_EQ(reinterpret_cast<uintptr_t>(operand) % sizeof(Pack<T>), 0u) << "operands are aligned";
  }
  // Every expert ends in at most one tile that is not full.
  const int num_row_tiles = p.expert_offsets == nullptr ? CeilDiv(p.num_rows, kTileM)
                                                        : p.num_rows / kTileM + p.num_experts;
  const dim3 grid(CeilDiv(p.n, kTileN), num_row_tiles);
  Launch(GroupedGemmKernel<T, Out>, grid, kTileThreads, 0, stream, p);
}

}  // namespace

void SimpleGemm(const GroupedGemmParams& p, Stream stream) {
  const auto is = [&](DType x, DType w, DType y) {
    return p.dtype == x && p.w_dtype == w && p.out_dtype == y;
  };
  constexpr DType kF32 = DType::kF32, kBF16 = DType::kBF16;
  if (is(kF32, kF32, kF32)) return LaunchSimple<float, float>(p, stream);
  if (is(kBF16, kBF16, kF32)) return LaunchSimple<BF16, float>(p, stream);
  if (is(kBF16, kBF16, kBF16)) return LaunchSimple<BF16, BF16>(p, stream);
  CHECK(false) << Name(p.dtype) << " x " << Name(p.w_dtype) << " -> " << Name(p.out_dtype)
               << ", CUDA takes f32 x f32 -> f32, bf16 x bf16 -> f32 or bf16, and with rows of "
                  "multiples of 16 bytes f8_e4m3 x f8_e4m3 -> f32 or bf16";
}

}  // namespace bough::cuda
