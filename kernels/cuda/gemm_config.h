// Which tile a product gets: the choice is host code, so that tests and benchmarks can look at it.
#pragma once

#include "kernels/gemm.h"

namespace bough::cuda {

// A thread block computes tiles of y: tile_m tokens by tile_n outputs. `cluster` thread blocks with
// neighbouring outputs share the copies of their tokens. split_k: tiles that do not fill a last round
// of thread blocks may be split over k.
struct GemmConfig {
  int tile_n = 0, tile_m = 0, cluster = 1;
  bool split_k = true;
  bool operator==(const GemmConfig&) const = default;
};

// Every tile that is compiled.
inline constexpr GemmConfig kGemmTiles[] = {{64, 8},       {64, 16},      {128, 32}, {128, 64},
                                            {128, 128, 2}, {128, 256, 2}, {256, 128}};

// num_rows: of all experts together, an upper bound. row_bytes: of a row of x or w.
GemmConfig PickConfig(int num_rows, int num_experts, int n, int64_t row_bytes, int num_sms);

// y by the config's tile; p.expert_offsets nullptr: one expert has all rows.
// REQUIRES: dtypes, shapes and addresses that FitsTiles.
void TiledGemm(const GroupedGemmParams& p, const GemmConfig& config, Stream stream);
void TiledGemmE4M3(const GroupedGemmParams& p, const GemmConfig& config, Stream stream);
void TiledGemmBF16(const GroupedGemmParams& p, const GemmConfig& config, Stream stream);

// 64 experts at most, rows of x, w and y multiples of 16 bytes, as their addresses are.
bool FitsTiles(const GroupedGemmParams& p);

// Any shape in f32 or bf16; no scales.
void SimpleGemm(const GroupedGemmParams& p, Stream stream);

}  // namespace bough::cuda
