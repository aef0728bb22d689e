// Which thread block of the tiled GEMM does what, and when: found on the device, since only it knows
// how many rows each expert has.
#pragma once

#include "kernels/cuda/device.cuh"

namespace bough::cuda {

inline constexpr int kMaxExperts = 64;
inline constexpr int kBandTiles = 16;  // see Schedule

// What the kernel is told apart from the tensors that TMA reads.
struct TiledGemmArgs {
  const float* x_scale;
  const float* w_scale;
  const int32_t* expert_offsets;
  void* y;
  uint32_t* flags;   // [thread blocks, warpgroups]: 1 = the partial sums there are complete
  float4* partials;  // [thread blocks, warpgroups, kPartialPacks, kWarpgroupSize]
  int num_experts, num_rows, n, num_k_blocks;
  bool split_k, f32_out;
  bool offsets_known;  // without waiting for the kernel before; there may be none
};

// Where experts' rows and tiles begin.
struct ScheduleTable {
  int row_begin[kMaxExperts + 1];
  int tile_begin[kMaxExperts + 1];
};

// A tile of y, and the k-blocks of it that are this thread block's.
struct Work {
  int expert, n_begin, row_begin, num_rows, k_begin, k_end;
};

// The work of one thread block, the same for its producer and its warpgroups. Thread blocks of a
// cluster are one unit with kCluster * kTileN outputs. Tiles are numbered by expert, band of
// kBandTiles tiles of tokens, tile of outputs, tile of tokens within the band: neighbours in time
// share weights, and a band's tokens stay in L2.
//
// Units take tiles in turn. What does not fill a round may be split over k: the first tiles, so that
// the sums of several units meet while the copies for whole tiles run on. Their k-blocks form one
// line, cut into equal ranges.
template <typename Tile>
class Schedule {
 public:
  __device__ Schedule(const TiledGemmArgs& args, const ScheduleTable& table)
      : args_(args),
        table_(table),
        num_n_tiles_(CeilDiv(args.n, Tile::kTileN * Tile::kCluster)),
        num_tiles_(table.tile_begin[args.num_experts]),
        num_units_(gridDim.x / Tile::kCluster) {
    const int unit = blockIdx.x / Tile::kCluster;
    const int num_split = args.split_k ? NumSplitTiles() : 0;
    line_end_ = num_split * args.num_k_blocks;
    // Each with a quarter of a tile or more: a tile's owner adds the others' sums one by one.
    num_splitters_ = min(num_units_, num_split * min(4, args.num_k_blocks));
    const int begin = Begin(unit);
    num_left_ = Begin(unit + 1) - begin;
    tile_ = begin / args.num_k_blocks;
    k_ = begin % args.num_k_blocks;
    next_tile_ = num_split + unit;
  }

  __device__ bool Next(Work& work) {
    if (num_left_ == 0) {
      if (next_tile_ >= num_tiles_) return false;
      tile_ = next_tile_;
      k_ = 0;
      num_left_ = args_.num_k_blocks;
      next_tile_ += num_units_;
    }
    while (tile_ >= table_.tile_begin[expert_ + 1]) ++expert_;
    const int first_row = table_.row_begin[expert_], end_row = table_.row_begin[expert_ + 1];
    int band_width = CeilDiv(end_row - first_row, Tile::kTileM);
    int in_band = tile_ - table_.tile_begin[expert_], m_tile = 0;
    for (; band_width > kBandTiles && in_band >= kBandTiles * num_n_tiles_; m_tile += kBandTiles) {
      in_band -= kBandTiles * num_n_tiles_;
      band_width -= kBandTiles;
    }
    band_width = min(band_width, kBandTiles);
    const int n_tile = in_band / band_width;
    m_tile += in_band - n_tile * band_width;
    work.expert = expert_;
    work.n_begin = (n_tile * Tile::kCluster + blockIdx.x % Tile::kCluster) * Tile::kTileN;
    work.row_begin = first_row + m_tile * Tile::kTileM;
    work.num_rows = min(Tile::kTileM, end_row - work.row_begin);
    work.k_begin = k_;
    work.k_end = min(args_.num_k_blocks, k_ + num_left_);
    num_left_ -= work.k_end - k_;
    ++tile_;
    k_ = 0;
    return true;
  }

  // Units have k-blocks of the tile that this unit began with the last work and did not end: from
  // the next one to before this.
  __device__ int EndUnit() const {
    const int tile_end = tile_ * args_.num_k_blocks;
    int unit = blockIdx.x / Tile::kCluster + 1;
    while (Begin(unit) < tile_end) ++unit;
    return unit;
  }

 private:
  // Splitting the last round's tiles saves the k-blocks for which it leaves units idle, here as
  // k-blocks of 64 outputs; but with few tokens 6 units in 10 drain HBM as fast as all. It costs the
  // sums' way through L2, and the wait for them unless whole tiles hide it. Measured on H200.
  __device__ int NumSplitTiles() const {
    const bool alone = num_tiles_ < num_units_;
    const int num_left = num_tiles_ % num_units_;
    const int num_useful = alone && Tile::kTileM < 128 ? num_units_ * 6 / 10 : num_units_;
    const int saved = args_.num_k_blocks * (num_useful - num_left) / num_units_;
    const int sums = Tile::kTileN / 64 * Tile::kTileM / (Tile::kTileM < 128 ? 10 : 5);
    const int cost = sums + (alone ? 12 : 2);
    return saved * (Tile::kTileN / 64) > cost ? num_left : 0;
  }

  // Where the unit's range of the line begins.
  __device__ int Begin(int unit) const {
    return unit >= num_splitters_ ? line_end_ : line_end_ * unit / num_splitters_;
  }

  const TiledGemmArgs& args_;
  const ScheduleTable& table_;
  int num_n_tiles_, num_tiles_, num_units_, num_splitters_, line_end_;
  int tile_, k_, num_left_;  // what is next of the range or of a whole tile
  int next_tile_, expert_ = 0;
};

// All threads call it.
template <typename Tile>
__device__ void FillTable(const TiledGemmArgs& args, ScheduleTable& table) {
  const int e = threadIdx.x;
  if (e <= args.num_experts) {
    table.row_begin[e] =
        args.expert_offsets == nullptr ? e * args.num_rows : args.expert_offsets[e];
  }
  __syncthreads();
  if (e <= args.num_experts) {
    int num_m_tiles = 0;
    for (int i = 0; i < e; ++i) {
      num_m_tiles += CeilDiv(table.row_begin[i + 1] - table.row_begin[i], Tile::kTileM);
    }
    table.tile_begin[e] = num_m_tiles * CeilDiv(args.n, Tile::kTileN * Tile::kCluster);
  }
  __syncthreads();
}

}  // namespace bough::cuda
