// Which kernel and which tile a product gets.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/gemm_config.h"
#include "kernels/cuda/gemm_sm90.cuh"

namespace bough::cuda {

namespace {

// At most 128 rows, one expert: the weights are read once, and what counts is that no SM is left
// with more of them than others. Splitting over k costs about 3 us, which short rows do not win back.
GemmConfig PickNarrowDense(int rows, int n, int64_t row_bytes, int num_sms) {
  const int num_tiles = CeilDiv(n, 128);  // of 128 outputs
  const bool long_rows = row_bytes > 8192;
  const bool small = row_bytes <= 4096 && 2 * num_tiles <= num_sms;
  if (rows <= 32) {
    // An SM streams 128 outputs faster than 64, if there is something for all of them.
    const bool fills_a_round = 3 * num_tiles > 2 * num_sms && num_tiles <= num_sms;
    if (fills_a_round) return {.tile_n = 128, .tile_m = 32, .split_k = false};
    if (rows > 16 || (long_rows && 3 * num_tiles < num_sms)) return {.tile_n = 128, .tile_m = 32};
    return {.tile_n = 64, .tile_m = rows <= 8 ? 8 : 16, .split_k = row_bytes > 4096};
  }
  if (rows <= 64) {
    if (small) return {.tile_n = 128, .tile_m = 32, .split_k = false};
    return {.tile_n = 128, .tile_m = 64};
  }
  if (small) return {.tile_n = 128, .tile_m = 64, .split_k = false};
  return {.tile_n = 128, .tile_m = 128, .cluster = 2};
}

}  // namespace

// From bench-kernels-gemm --sweep, with and without --dense, on an H200.
GemmConfig PickConfig(int num_rows, int num_experts, int n, int64_t row_bytes, int num_sms) {
  if (num_experts == 1 && num_rows <= 128) {
    return PickNarrowDense(num_rows, n, row_bytes, num_sms);
  }
  // Rows of one expert when tokens choose evenly, and three standard deviations more.
  const double mean = static_cast<double>(num_rows) / num_experts;
  const double rows =
      num_experts == 1 ? mean : std::min<double>(num_rows, mean + 3 * std::sqrt(mean));
  if (rows <= 8) return {.tile_n = 64, .tile_m = 8};
  if (rows <= 16) return {.tile_n = 64, .tile_m = 16};
  if (rows <= 32) return {.tile_n = 128, .tile_m = 32};
  if (rows <= 64) return {.tile_n = 128, .tile_m = 64};
  if (num_experts > 1 && rows <= 128) return {.tile_n = 128, .tile_m = 128, .cluster = 2};
  if (num_experts > 1 && rows <= 256) return {.tile_n = 128, .tile_m = 256, .cluster = 2};
  // The larger tile takes less from L2, the smaller leaves fewer SMs idle in the last round.
  const double m_tiles = std::ceil(mean / 128) * num_experts;
  const double large = 2 * std::ceil(m_tiles * CeilDiv(n, 256) / num_sms);
  const double small = 1.08 * std::ceil(m_tiles * CeilDiv(n, 128) / num_sms);
  if (small < large) return {.tile_n = 128, .tile_m = 128, .cluster = 2};
  return {.tile_n = 256, .tile_m = 128};
}

bool FitsTiles(const GroupedGemmParams& p) {
  const bool e4m3 = p.dtype == DType::kF8E4M3 && p.w_dtype == DType::kF8E4M3;
  const bool bf16 = p.dtype == DType::kBF16 && p.w_dtype == DType::kBF16;
  if (!e4m3 && !bf16) return false;
  if (p.out_dtype != DType::kBF16 && p.out_dtype != DType::kF32) return false;
  for (const void* tensor : {p.x, p.w, static_cast<const void*>(p.y)}) {
    if (reinterpret_cast<uintptr_t>(tensor) % 16 != 0) return false;
  }
  return p.num_experts <= kMaxExperts && p.k > 0 && p.k * SizeOf(p.dtype) % 16 == 0 &&
         p.n * SizeOf(p.out_dtype) % 16 == 0;
}

void TiledGemm(const GroupedGemmParams& p, const GemmConfig& config, Stream stream) {
  if (p.dtype == DType::kF8E4M3) return TiledGemmE4M3(p, config, stream);
  return TiledGemmBF16(p, config, stream);
}

void GroupedGemm(const GroupedGemmParams& p, Stream stream) {
  if (p.num_rows == 0 || p.n == 0) return;
  CHECK_EQ(p.dtype == DType::kF8E4M3, p.x_scale != nullptr) << "f8_e4m3 has scales, others none";
  CHECK_EQ(p.x_scale != nullptr, p.w_scale != nullptr) << "both sides have scales, or none";
  if (!FitsTiles(p)) return SimpleGemm(p, stream);
  TiledGemm(p, PickConfig(p.num_rows, p.num_experts, p.n, p.k * SizeOf(p.dtype), NumSms()), stream);
}

// A single expert with all rows.
void Gemm(const GemmParams& p, Stream stream) {
  GroupedGemm({.x = p.x,
               .x_scale = p.x_scale,
               .w = p.w,
               .w_scale = p.w_scale,
               .expert_offsets = nullptr,
               .y = p.y,
               .workspace = p.workspace,
               .num_experts = 1,
               .num_rows = p.m,
               .n = p.n,
               .k = p.k,
               .dtype = p.dtype,
               .w_dtype = p.w_dtype,
               .out_dtype = p.out_dtype},
              stream);
}

}  // namespace bough::cuda
