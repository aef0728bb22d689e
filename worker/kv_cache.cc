#include "worker/kv_cache.h"

#include "common/block_hash.h"
#include "common/status_macros.h"

namespace bough {

int64_t KvCache::BytesPerBlock(const ModelConfig& config, const Shard& shard, DType dtype) {
  const int64_t elements = int64_t{shard.num_kv_heads()} * kBlockSize * config.head_dim;
  return 2 * config.num_hidden_layers * elements * static_cast<int64_t>(SizeOf(dtype));
}

absl::StatusOr<KvCache> KvCache::Allocate(const ModelConfig& config, const Shard& shard,
                                          DType dtype, int num_blocks, Device* device) {
  KvCache cache;
  cache.device_ = device;
  cache.dtype_ = dtype;
  cache.num_blocks_ = num_blocks;
  cache.block_bytes_ = BytesPerBlock(config, shard, dtype) / (2 * config.num_hidden_layers);
  for (int i = 0; i < config.num_hidden_layers; ++i) {
    for (auto* caches : {&cache.k_, &cache.v_}) {
      ASSIGN_OR_RETURN(DeviceBuffer buffer,
                       DeviceBuffer::Allocate(device, num_blocks * cache.block_bytes_, "KV cache"));
      // Kernels may read slots that no token has written: they multiply them by zero.
      if (device->is_cuda()) device->Zero(buffer.data(), buffer.num_bytes());
      caches->push_back(std::move(buffer));
    }
  }
  return cache;
}

void KvCache::CopyBlocks(const int32_t* src, const int32_t* dst, int num_copies) {
  if (num_copies == 0) return;
  for (size_t layer = 0; layer < k_.size(); ++layer) {
    device_->ops().CopyBlocks({.k_cache = k_[layer].data(),
                               .v_cache = v_[layer].data(),
                               .src = src,
                               .dst = dst,
                               .num_copies = num_copies,
                               .block_bytes = block_bytes_},
                              device_->stream());
  }
}

}  // namespace bough
