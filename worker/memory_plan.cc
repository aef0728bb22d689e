#include "worker/memory_plan.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "common/block_hash.h"
#include "common/check.h"

namespace bough {
namespace {

double Mebi(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

}  // namespace

int LargestBatch(const MemoryPlan& plan, int context, int max_num_seqs) {
  CHECK_GT(context, 0);
  const int blocks_per_seq = (context + kBlockSize - 1) / kBlockSize;
  return std::min(plan.num_blocks / blocks_per_seq, max_num_seqs);
}

std::string MemoryPlanText(const MemoryPlan& plan, const Config& config) {
  std::string text =
      absl::StrFormat("model     %s, tp %d, ep %d\n", config.model, config.tp_size, config.ep_size);
  for (size_t rank = 0; rank < plan.weight_bytes.size(); ++rank) {
    absl::StrAppendFormat(&text, "weights   %.1f MiB on rank %d\n", Mebi(plan.weight_bytes[rank]),
                          rank);
  }
  absl::StrAppendFormat(&text,
                        "KV cache  %.1f MiB per rank: %d blocks of %d tokens, %.2f MiB each\n",
                        Mebi(plan.block_bytes * plan.num_blocks), plan.num_blocks, kBlockSize,
                        Mebi(plan.block_bytes));
  absl::StrAppendFormat(&text, "tokens    %d\n", int64_t{plan.num_blocks} * kBlockSize);
  for (int context = plan.max_model_len; context > 0; context /= 4) {
    absl::StrAppendFormat(&text, "batch     %d sequences of %d tokens%s\n",
                          LargestBatch(plan, context, config.max_num_seqs), context,
                          context == plan.max_model_len ? " (the longest)" : "");
    if (context <= kBlockSize) break;
  }
  return text;
}

}  // namespace bough
