// The stream kernel's sizes, and what its producer and its consumers share.
#pragma once

#include "kernels/cuda/attention_merge.cuh"
#include "kernels/cuda/sm90.cuh"

namespace bough::cuda {

inline constexpr int kConsumerWarps = 4;  // each takes 16 keys of a block
inline constexpr int kConsumers = kConsumerWarps * kWarpSize;
inline constexpr int kStreamThreads = kConsumers + kWarpSize;

// kQTiles: of 8 query rows. kCtas: thread blocks an SM.
template <typename KV, int kHeadDim, int kQTiles, int kCtas>
struct StreamShape {
  using Element = KV;
  using T = MmaType<KV>;
  static constexpr bool kWidens = sizeof(KV) == 1;
  static constexpr int kDim = kHeadDim, kTiles = kQTiles, kPerSm = kCtas;
  static constexpr int kRows = 8 * kQTiles;
  static constexpr int kRowBytes = kHeadDim * sizeof(KV);
  static constexpr int kMatrixBytes = kBlockKeys * kRowBytes;  // a block's K or V
  // Boxes of K [64 keys, kBoxBytes]; bf16 V as K. e4m3 V, one box of rows of 128 bytes: row r holds
  // elements 2 r and 2 r + 1 of the block's 64 values.
  static constexpr int kBoxBytes = kRowBytes < 128 ? kRowBytes : 128;
  static constexpr int kBoxes = kRowBytes / kBoxBytes;
  static constexpr int kBoxSize = kBlockKeys * kBoxBytes;
  // Padded so that a warp's fragments of queries meet all banks.
  static constexpr int kQueryStride = kHeadDim * 2 + (kWidens ? 32 : 16);
  static constexpr int kQueryBytes = kRows * kQueryStride;
  static constexpr int kSmBytes = 228 * 1024, kReservedBytes = 1024, kMaxBytes = 227 * 1024;
  static constexpr int kBytes =
      kSmBytes / kCtas - kReservedBytes < kMaxBytes ? kSmBytes / kCtas - kReservedBytes : kMaxBytes;
  static constexpr int kInfoBytes = 96 + 16 * kRows;
  static constexpr int kFixedBytes = 5120;
  static constexpr int kStagesThatFit =
      (kBytes - kFixedBytes) / (2 * kMatrixBytes + kQueryBytes + kInfoBytes + 16);
  static constexpr int kStages = kStagesThatFit < 8 ? kStagesThatFit : 8;
  static_assert(kStages >= 2, "a stage is read while another one is filled");
};

// A part as the stream kernel passes it on. Ints alone: lanes hand them to each other.
struct StreamPart {
  int32_t first_unit, num_units, is_own, kv_head;
  int32_t first_block;             // of the entry, in its sequence
  int32_t block_begin, block_end;  // counted from there
  int32_t key_end, table_seq;
  int32_t slot;
  int32_t token, position, num_blocks;  // of its first unit
  int32_t table_entry;                  // of block_begin
  int32_t own_slot,
      own_parts;  // of the first unit, if it has no other entries; else own_parts is 0
  float score_scale, v_scale;
};

// What the producer says of a stage, a block of a part.
template <int kRows>
struct alignas(16) StageInfo {
  StreamPart part;
  int32_t flags;  // StageFlags
  int32_t key;    // position of the block's first
  struct alignas(16) Unit {
    int32_t token, position, num_blocks, unused;
  } units[kRows];  // the part's, as WorkUnit
};
enum StageFlags : int32_t { kFirst = 1, kLast = 2, kHasKeys = 4, kMasked = 8, kEnd = 16 };

template <typename S>
struct StreamShared {
  using Info = StageInfo<S::kRows>;
  alignas(1024) uint8_t keys_values[S::kStages][2 * S::kMatrixBytes];
  alignas(16) uint8_t queries[S::kStages][S::kQueryBytes];
  Info info[S::kStages];
  float2 ml[kConsumerWarps][S::kRows];
  MergeMemory<2 * kStreamRows> merge;
  uint64_t full[S::kStages], empty[S::kStages];
};

// A stage of the ring and the parity of its barriers' phase.
template <int kStages>
struct StagePosition {
  int stage = 0;
  uint32_t phase = 0;
  __device__ void Advance() {
    if (++stage < kStages) return;
    stage = 0;
    phase ^= 1;
  }
};

}  // namespace bough::cuda
