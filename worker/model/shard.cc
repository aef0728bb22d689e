#include "worker/model/shard.h"

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace bough {
namespace {

// With fewer KV heads than ranks a KV head lies on several ranks, and each rank's query heads
// belong to one KV head alone.
Range KvHeads(const ModelConfig& c, int world, int rank) {
  if (c.num_key_value_heads >= world) return PartOf(c.num_key_value_heads, world, rank);
  const int head = rank / (world / c.num_key_value_heads);
  return {head, head + 1};
}

absl::Status CheckSizes(const ModelConfig& c, int tp_size, int ep_size) {
  const auto bad = [](const auto&... text) {
    return absl::InvalidArgumentError(absl::StrCat(text...));
  };
  if (tp_size < 1) return bad("--tp-size must be at least 1, is ", tp_size);
  if (ep_size < 1) return bad("--ep-size must be at least 1, is ", ep_size);
  const int64_t world = int64_t{tp_size} * ep_size;
  const std::string product = absl::StrCat("--tp-size * --ep-size = ", world);
  if (c.num_attention_heads % world != 0) {
    return bad(product, " does not divide num_attention_heads = ", c.num_attention_heads);
  }
  if (c.num_key_value_heads % world != 0 && world % c.num_key_value_heads != 0) {
    return bad(product, " and num_key_value_heads = ", c.num_key_value_heads,
               ": neither divides the other");
  }
  if (c.is_moe() && ep_size > c.num_local_experts) {
    return bad("--ep-size = ", ep_size, " exceeds num_local_experts = ", c.num_local_experts);
  }
  if (c.is_moe() && tp_size > c.intermediate_size) {
    return bad("--tp-size = ", tp_size, " exceeds intermediate_size = ", c.intermediate_size);
  }
  if (!c.is_moe() && world > c.intermediate_size) {
    return bad(product, " exceeds intermediate_size = ", c.intermediate_size);
  }
  if (world > c.vocab_size) return bad(product, " exceeds vocab_size = ", c.vocab_size);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Shard> MakeShard(const ModelConfig& c, int tp_size, int ep_size, int rank) {
  RETURN_IF_ERROR(CheckSizes(c, tp_size, ep_size));
  Shard shard;
  shard.world = tp_size * ep_size;
  shard.rank = rank;
  CHECK(0 <= rank && rank < shard.world) << "rank " << rank << " of " << shard.world;
  shard.heads = PartOf(c.num_attention_heads, shard.world, rank);
  shard.kv_heads = KvHeads(c, shard.world, rank);
  shard.vocab = PartOf(c.vocab_size, shard.world, rank);
  if (c.is_moe()) {
    shard.experts = PartOf(c.num_local_experts, ep_size, rank / tp_size);
    shard.intermediate = PartOf(c.intermediate_size, tp_size, rank % tp_size);
  } else {
    shard.intermediate = PartOf(c.intermediate_size, shard.world, rank);
  }
  return shard;
}

}  // namespace bough
