#include "worker/kv_cache.h"

#include "common/block_hash.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/ops.h"

namespace bough {

int64_t KvCache::BytesPerBlock(const ModelConfig& config, const Shard& shard) {
  const int64_t elements = int64_t{shard.num_kv_heads()} * kBlockSize * config.head_dim;
  return 2 * config.num_hidden_layers * elements * static_cast<int64_t>(SizeOf(kDType));
}

absl::StatusOr<KvCache> KvCache::Allocate(const ModelConfig& config, const Shard& shard,
                                          int num_blocks) {
  KvCache cache;
  cache.num_blocks_ = num_blocks;
  cache.block_bytes_ = BytesPerBlock(config, shard) / (2 * config.num_hidden_layers);
  for (int i = 0; i < config.num_hidden_layers; ++i) {
    for (auto* caches : {&cache.k_, &cache.v_}) {
      ASSIGN_OR_RETURN(DeviceBuffer buffer,
                       DeviceBuffer::Allocate(num_blocks * cache.block_bytes_, "KV cache"));
      caches->push_back(std::move(buffer));
    }
  }
  return cache;
}

void KvCache::CopyBlocks(std::span<const int32_t> src, std::span<const int32_t> dst) {
  CHECK_EQ(src.size(), dst.size());
  for (size_t layer = 0; layer < k_.size(); ++layer) {
    ops::CopyBlocks({.k_cache = k_[layer].data(),
                     .v_cache = v_[layer].data(),
                     .src = src.data(),
                     .dst = dst.data(),
                     .num_copies = static_cast<int>(src.size()),
                     .block_bytes = block_bytes_});
  }
}

}  // namespace bough
