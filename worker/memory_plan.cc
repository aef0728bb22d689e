#include "worker/memory_plan.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "common/block_hash.h"
#include "common/check.h"
#include "worker/kv_memory.h"

namespace bough {
namespace {

std::string Size(int64_t bytes) {
  const double mebi = static_cast<double>(bytes) / (1 << 20);
  if (mebi < 1024) return absl::StrFormat("%.1f MiB", mebi);
  return absl::StrFormat("%.2f GiB", mebi / 1024);
}

// For the KV cache of a rank; negative when not even weights and scratch fit.
int64_t KvBytes(const RankMemory& rank, const Config& config) {
  if (config.kv_cache_memory_bytes > 0) return config.kv_cache_memory_bytes;
  if (rank.total == 0) return kDefaultKvBytesOnCpu;
  return Allowance(rank, config) - rank.weights - rank.scratch;
}

std::string AllowanceText(const RankMemory& rank, const Config& config) {
  return absl::StrFormat("%s (%.0f %% of %s, less %s in use)", Size(Allowance(rank, config)),
                         100 * config.gpu_memory_utilization, Size(rank.total),
                         Size(rank.total - rank.free));
}

std::string RankText(const RankMemory& rank, int index, const MemoryPlan& plan,
                     const Config& config) {
  const int64_t kv_bytes = plan.block_bytes * plan.num_blocks;
  std::string text = absl::StrFormat("rank %d    need %s: weights %s, scratch %s, KV cache %s\n",
                                     index, Size(rank.weights + rank.scratch + kv_bytes),
                                     Size(rank.weights), Size(rank.scratch), Size(kv_bytes));
  if (rank.total > 0) {
    absl::StrAppendFormat(&text, "          have %s\n", AllowanceText(rank, config));
  }
  return text;
}

}  // namespace

int64_t Allowance(const RankMemory& rank, const Config& config) {
  CHECK_GT(rank.total, 0);
  return DeviceAllowance(rank.total, rank.free, config.gpu_memory_utilization);
}

MemoryPlan PlanMemory(MemoryPlan plan, const Config& config) {
  CHECK_GT(plan.block_bytes, 0);
  int64_t num_blocks = kMaxKvBlocks;
  for (const RankMemory& rank : plan.ranks) {
    num_blocks = std::min(num_blocks, KvBytes(rank, config) / plan.block_bytes);
  }
  plan.num_blocks = static_cast<int>(std::max<int64_t>(num_blocks, 0));
  return plan;
}

absl::Status CheckFits(const MemoryPlan& plan, const Config& config) {
  for (size_t i = 0; i < plan.ranks.size(); ++i) {
    const RankMemory& rank = plan.ranks[i];
    const int64_t kv_bytes = plan.block_bytes * std::max(plan.num_blocks, 1);
    if (rank.total == 0 || rank.weights + rank.scratch + kv_bytes <= Allowance(rank, config)) {
      continue;
    }
    return absl::ResourceExhaustedError(absl::StrFormat(
        "does not fit: rank %d needs %s for weights, %s for scratch and %s for the KV cache, but "
        "has %s",
        i, Size(rank.weights), Size(rank.scratch), Size(kv_bytes), AllowanceText(rank, config)));
  }
  if (plan.num_blocks > 0) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrFormat("does not fit: --kv-cache-memory-bytes = %d holds no block of %d bytes",
                      config.kv_cache_memory_bytes, plan.block_bytes));
}

int LargestBatch(const MemoryPlan& plan, int context, int max_num_seqs) {
  CHECK_GT(context, 0);
  const int blocks_per_seq = (context + kBlockSize - 1) / kBlockSize;
  return std::min(plan.num_blocks / blocks_per_seq, max_num_seqs);
}

std::string MemoryPlanText(const MemoryPlan& plan, const Config& config) {
  std::string text = absl::StrFormat(
      "model     %s, tp %d, ep %d, weights %s, KV cache %s\ndevice    %s\n", config.model,
      config.tp_size, config.ep_size, config.quantization == "fp8" ? "fp8 on load" : "as stored",
      config.kv_cache_dtype, plan.device);
  for (size_t i = 0; i < plan.ranks.size(); ++i) {
    text += RankText(plan.ranks[i], static_cast<int>(i), plan, config);
  }
  absl::StrAppendFormat(&text, "KV cache  %d blocks of %d tokens, %s each: %d tokens\n",
                        plan.num_blocks, kBlockSize, Size(plan.block_bytes),
                        int64_t{plan.num_blocks} * kBlockSize);
  for (int context = plan.max_model_len; context > 0; context /= 4) {
    absl::StrAppendFormat(&text, "batch     %d sequences of %d tokens%s\n",
                          LargestBatch(plan, context, config.max_num_seqs), context,
                          context == plan.max_model_len ? " (the longest)" : "");
    if (context <= kBlockSize) break;
  }
  absl::StrAppendFormat(&text, "fits      %s\n", CheckFits(plan, config).ok() ? "yes" : "no");
  return text;
}

}  // namespace bough
