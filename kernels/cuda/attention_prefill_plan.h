// The tiles of a step's prefill attention, in the order in which thread blocks should take them.
#pragma once

#include <cstdint>

#include "kernels/cuda/attention_kernels.cuh"

namespace bough::cuda {

inline constexpr int kPrefillRows = 128;  // (query, head) pairs of a tile

// (Query, head) pairs [first_row, first_row + num_rows) of one sequence, of each KV head.
struct alignas(16) PrefillItem {
  int32_t seq, first_row, num_rows;
  int32_t first_token, first_position;  // of the sequence's first query
};

// In device memory.
struct PrefillPlan {
  int32_t* num_items;  // for one KV head
  PrefillItem* items;  // [max_items] those with most keys first
  int max_items;

  static int MaxItems(int max_num_tokens, int max_num_seqs, int heads_per_kv) {
    return static_cast<int>(int64_t{max_num_tokens} * heads_per_kv / kPrefillRows) + max_num_seqs;
  }
  static int64_t NumBytes(int max_items) { return 16 + int64_t{max_items} * sizeof(PrefillItem); }
  static PrefillPlan At(void* memory, int max_items) {
    char* const base = static_cast<char*>(memory);
    return {reinterpret_cast<int32_t*>(base), reinterpret_cast<PrefillItem*>(base + 16), max_items};
  }
};

// Where it lies in the workspace.
PrefillPlan PrefillPlanIn(const AttentionParams& p);

// Lists the tiles of sequences with more than one query.
void PlanPrefill(const AttentionParams& p, const PrefillPlan& plan, Stream stream);

}  // namespace bough::cuda
