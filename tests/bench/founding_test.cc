#include <gtest/gtest.h>

#include "bench/engine_founding.h"

namespace bough {
namespace {

ModelConfig SevenB(bool is_gqa) {
  ModelConfig config;
  config.hidden_size = 4096;
  config.intermediate_size = is_gqa ? 14336 : 11008;
  config.num_hidden_layers = 32;
  config.num_attention_heads = 32;
  config.num_key_value_heads = is_gqa ? 8 : 32;
  config.head_dim = 128;
  config.vocab_size = 32000;
  return config;
}

constexpr Precision kBF16 = {.weight_bytes = 2, .lm_head_bytes = 2, .kv_bytes = 2};
constexpr Precision kFp8 = {.weight_bytes = 1, .lm_head_bytes = 2, .kv_bytes = 1};

// Worked out by hand from the formula, to three digits.
TEST(FoundingLimits, AreThoseOfTheStudy) {
  struct Row {
    bool is_gqa;
    Precision precision;
    FoundingCell cell;
    double floor_ms, envelope_ms;
  };
  const Row kRows[] = {
      {false, kBF16, {8192, 1}, 3.65, 3.99},   {false, kBF16, {8192, 16}, 3.76, 4.10},
      {false, kBF16, {8192, 128}, 4.54, 4.96}, {false, kBF16, {32640, 1024}, 31.4, 47.7},
      {false, kFp8, {8192, 1}, 1.85, 2.02},    {false, kFp8, {16384, 2048}, 22.6, 40.4},
      {true, kBF16, {16384, 64}, 3.52, 4.12},  {true, kFp8, {8192, 128}, 1.79, 2.26},
      {true, kFp8, {32640, 2048}, 32.5, 61.4}};
  for (const Row& row : kRows) {
    SCOPED_TRACE(row.cell.name());
    const StepLimits limits = LimitsOf(SevenB(row.is_gqa), row.precision, row.cell);
    EXPECT_NEAR(limits.floor_ms, row.floor_ms, 0.005 * row.floor_ms);
    EXPECT_NEAR(limits.envelope_ms, row.envelope_ms, 0.005 * row.envelope_ms);
  }
}

TEST(FoundingLimits, AskForTheFloorOfFewSamplesAndTheEnvelopeOfMany) {
  const StepLimits limits = {.floor_ms = 4, .envelope_ms = 10};
  EXPECT_DOUBLE_EQ(limits.GateMs(1), 5);
  EXPECT_DOUBLE_EQ(limits.GateMs(128), 5);
  EXPECT_DOUBLE_EQ(limits.GateMs(256), 12);
}

TEST(FoundingCells, AreThreeContextsByTwelveSizes) {
  const std::vector<FoundingCell> cells = FoundingCells();
  ASSERT_EQ(cells.size(), 36u);
  EXPECT_EQ(cells.front().name(), "ctx=8192/n=1");
  EXPECT_EQ(cells.back().name(), "ctx=32640/n=2048");
}

TEST(FoundingCells, NeedTheContextOnceAndTwoBlocksASample) {
  EXPECT_EQ((FoundingCell{8192, 1024}).num_kv_blocks(), 128 + 2 * 1024);
}

TEST(PaperStepMs, TellsTheModelsApart) {
  EXPECT_EQ(PaperStepMs(SevenB(false), {8192, 128}), 21.4);
  EXPECT_EQ(PaperStepMs(SevenB(true), {8192, 128}), 20.4);
  EXPECT_EQ(PaperStepMs(SevenB(true), {8192, 2}), std::nullopt);
}

}  // namespace
}  // namespace bough
