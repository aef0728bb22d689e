// The paged KV cache of one rank: per layer K and V as [num_blocks, num_kv_heads, kBlockSize,
// head_dim], an e4m3 V as kernels/kv_layout.h says. Which block belongs to whom is the block manager's business.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/dtype.h"
#include "worker/model/device_buffer.h"
#include "worker/model/model_config.h"
#include "worker/model/shard.h"

namespace bough {

// Called only from the thread that runs batches.
class KvCache {
 public:
  // K and V of all layers on this rank.
  static int64_t BytesPerBlock(const ModelConfig& config, const Shard& shard, DType dtype);

  static absl::StatusOr<KvCache> Allocate(const ModelConfig& config, const Shard& shard,
                                          DType dtype, int num_blocks, Device* device);

  int num_blocks() const { return num_blocks_; }
  DType dtype() const { return dtype_; }
  void* k(int layer) const { return k_[layer].data(); }
  void* v(int layer) const { return v_[layer].data(); }

  // Whole blocks src[i] -> dst[i], in all layers. The arrays lie on the device; sources and
  // destinations are disjoint sets.
  void CopyBlocks(const int32_t* src, const int32_t* dst, int num_copies);

 private:
  Device* device_ = nullptr;
  DType dtype_ = DType::kF32;
  int num_blocks_ = 0;
  int64_t block_bytes_ = 0;  // of one block of one layer in k_ or v_
  std::vector<DeviceBuffer> k_, v_;
};

}  // namespace bough
