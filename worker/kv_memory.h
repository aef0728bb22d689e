// How much memory the KV cache may have: one rule for the plan (memory_plan.h) and for loading
// (model_runner.h).
#pragma once

#include <cstdint>
#include <limits>

#include "common/block_hash.h"

namespace bough {

inline constexpr int64_t kDefaultKvBytesOnCpu = 512ll << 20;
inline constexpr int64_t kMaxKvBlocks =
    std::numeric_limits<int32_t>::max() / kBlockSize;  // slots are int32

// Bytes that a rank may still take of its device: `utilization` of it, less what is in use.
inline int64_t DeviceAllowance(int64_t total_bytes, int64_t free_bytes, double utilization) {
  const double share = static_cast<double>(total_bytes) * utilization;
  return static_cast<int64_t>(share) - (total_bytes - free_bytes);
}

}  // namespace bough
