// The kernels made of attention_tile.cuh, a file for each type in which they multiply, to compile side
// by side.
#pragma once

#include "kernels/cuda/attention_prefill_plan.h"
#include "kernels/cuda/attention_work.cuh"

namespace bough::cuda {

// A bf16 cache; an e4m3 cache times e4m3 queries; an e4m3 cache widened to f16.
void LaunchPrefillBF16(const AttentionParams& p, const PrefillPlan& plan, Stream stream);
void LaunchPrefillE4M3(const AttentionParams& p, const PrefillPlan& plan, Stream stream);
void LaunchPrefillF16(const AttentionParams& p, const PrefillPlan& plan, Stream stream);
void LaunchNodesBF16(const AttentionParams& p, const WorkPlan& plan, Stream stream);
void LaunchNodesE4M3(const AttentionParams& p, const WorkPlan& plan, Stream stream);
void LaunchNodesF16(const AttentionParams& p, const WorkPlan& plan, Stream stream);

}  // namespace bough::cuda
