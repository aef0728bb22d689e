// The founding tables of bifurcated attention (arXiv 2403.08845): milliseconds of a decode step of a
// whole 7B model whose `num_samples` samples share a context. Which cells, what each may take at
// best, and what the paper's own code takes. Arithmetic only.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "bench/engine_cost.h"
#include "worker/model/model_config.h"

namespace bough {

// Each sample generates up to kReservedTokens, so its mean length over the run is half of that.
inline constexpr int kReservedTokens = 128, kMeanPrivateTokens = kReservedTokens / 2;

struct FoundingCell {
  int context = 0, num_samples = 0;

  std::string name() const;       // ctx=8192/n=16
  int64_t num_kv_blocks() const;  // the context's once, and what is reserved for the samples
};

// 8192, 16384 and 32640 tokens x 1, 2, 4, ..., 2048 samples.
std::vector<FoundingCell> FoundingCells();

// Two limits of a step, in ms, both of the form
//
//   max(weights / read, linear FLOPs / peak) + max(KV (N + B S) / read, attention FLOPs / peak)
//
// for B samples of S own tokens and N shared ones: linear layers and attention follow each other,
// the shared and the own part of attention overlap. The floor takes the datasheet's ceilings
// (4.8 TB/s, bf16 989 and e4m3 1979 TFLOPS), which nothing passes; the envelope what good kernels
// reach (4.4 TB/s; 700 and 1300 TFLOPS in linear layers, 620 and 900 in attention).
struct StepLimits {
  double floor_ms = 0, envelope_ms = 0;

  // What this engine means to keep: 1.25 x floor up to 128 samples, 1.2 x envelope from there on.
  double GateMs(int num_samples) const {
    return num_samples <= 128 ? 1.25 * floor_ms : 1.2 * envelope_ms;
  }
};
StepLimits LimitsOf(const ModelConfig& config, const Precision& precision,
                    const FoundingCell& cell);

// The paper's code (gpt-fast-parallel-sampling, bf16, compiled) on an H200 with torch 2.11, in ms a
// step, measured before and apart from this program; nullopt where it was not.
std::optional<double> PaperStepMs(const ModelConfig& config, const FoundingCell& cell);

}  // namespace bough
