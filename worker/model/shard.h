// Which part of the model a rank holds. The layout is defined in README.md beside this file.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "worker/model/model_config.h"

namespace bough {

// Half-open.
struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  friend bool operator==(const Range&, const Range&) = default;
};

// Part `index` of [0, total) cut into `parts`, whose sizes differ by at most one.
inline Range PartOf(int64_t total, int parts, int index) {
  return {total * index / parts, total * (index + 1) / parts};
}

struct Shard {
  int world = 1, rank = 0;  // world = tp_size * ep_size
  Range heads, kv_heads;    // of attention
  Range experts;            // of the MoE; empty in a dense model
  Range intermediate;       // of each expert held, or of the dense MLP
  Range vocab;              // rows of lm_head

  int num_heads() const { return static_cast<int>(heads.size()); }
  int num_kv_heads() const { return static_cast<int>(kv_heads.size()); }
  int num_experts() const { return static_cast<int>(experts.size()); }
  int intermediate_size() const { return static_cast<int>(intermediate.size()); }
};

// INVALID_ARGUMENT names the flags whose sizes do not fit the config. REQUIRES: 0 <= rank < world.
absl::StatusOr<Shard> MakeShard(const ModelConfig& config, int tp_size, int ep_size, int rank);

}  // namespace bough
