#include "bench/engine_founding.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/block_hash.h"

namespace bough {
namespace {

// Per ms.
struct StepCeilings {
  double read_bytes, linear_flops, attention_flops;
};

double StepMs(const StepCost& linear, const StepCost& attention, const StepCeilings& c) {
  const double linear_flops = linear.product_flops + linear.other_flops;
  return std::max(linear.bytes / c.read_bytes, linear_flops / c.linear_flops) +
         std::max(attention.bytes / c.read_bytes, attention.other_flops / c.attention_flops);
}

struct PaperCell {
  bool is_gqa;
  int context, num_samples;
  double ms;
};
constexpr PaperCell kPaperCells[] = {
    {false, 8192, 1, 6.24},   {false, 8192, 16, 7.38},   {false, 8192, 128, 21.4},
    {false, 8192, 512, 43.3}, {false, 16384, 16, 8.96},  {false, 16384, 128, 35.2},
    {false, 32640, 16, 12.0}, {false, 32640, 128, 30.5}, {true, 8192, 16, 6.68},
    {true, 8192, 128, 20.4},  {true, 8192, 1024, 80.4},  {true, 16384, 128, 34.4},
    {true, 32640, 128, 30.7}};

}  // namespace

std::string FoundingCell::name() const { return absl::StrCat("ctx=", context, "/n=", num_samples); }

int64_t FoundingCell::num_kv_blocks() const {
  static_assert(kReservedTokens % kBlockSize == 0);
  return (context + int64_t{num_samples} * kReservedTokens) / kBlockSize;
}

std::vector<FoundingCell> FoundingCells() {
  std::vector<FoundingCell> cells;
  for (int context : {8192, 16384, 32640}) {
    for (int n = 1; n <= 2048; n *= 2) cells.push_back({context, n});
  }
  return cells;
}

StepLimits LimitsOf(const ModelConfig& config, const Precision& precision,
                    const FoundingCell& cell) {
  const double n = cell.num_samples, m_c = cell.context, m_d = kMeanPrivateTokens;
  const StepCost linear = CostOf(config, precision, n, n, 0, 0);
  const StepCost attention = AttentionCostOf(config, precision, m_c + n * m_d, n * (m_c + m_d));
  const bool fp8_weights = precision.weight_bytes == 1, fp8_kv = precision.kv_bytes == 1;
  return {StepMs(linear, attention, {4.8e9, fp8_weights ? 1979e9 : 989e9, fp8_kv ? 1979e9 : 989e9}),
          StepMs(linear, attention, {4.4e9, fp8_weights ? 1300e9 : 700e9, fp8_kv ? 900e9 : 620e9})};
}

std::optional<double> PaperStepMs(const ModelConfig& config, const FoundingCell& cell) {
  const bool is_gqa = config.num_key_value_heads < config.num_attention_heads;
  for (const PaperCell& p : kPaperCells) {
    if (p.is_gqa == is_gqa && p.context == cell.context && p.num_samples == cell.num_samples) {
      return p.ms;
    }
  }
  return std::nullopt;
}

}  // namespace bough
