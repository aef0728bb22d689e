#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/attention.h"
#include "tests/testing/attention_inputs.h"
#include "tests/testing/compare.h"

namespace bough {
namespace {

// f32 sums of up to 400 products of numbers below 4, and weights that sum to 1.
constexpr Tolerance kAttentionTolerance = {.abs = 1e-5, .rel = 1e-5};

// Decode rows of which each shares `prefix_len` keys and has its own.
std::vector<SequenceShape> Rows(int prefix_len, const std::vector<int>& own_lens) {
  std::vector<SequenceShape> rows;
  for (int own : own_lens) rows.push_back({1, prefix_len + own});
  return rows;
}

TEST(BifurcatedAttention, MatchesTheFormula) {
  Random random(1);
  const AttentionInputs inputs(random, {}, Rows(192, {1, 64, 65, 200, 7}), 192);
  EXPECT_TRUE(Close(inputs.RunBifurcated({0, 5}, {192}), inputs.Reference(), inputs.OutputShape(),
                    kAttentionTolerance));
}

TEST(BifurcatedAttention, WidensAnE4M3CacheAndMultipliesByItsScales) {
  Random random(6);
  const AttentionInputs inputs(random, {.kv_dtype = DType::kF8E4M3, .kv_scales = true},
                               Rows(192, {1, 64, 65, 200, 7}), 192);
  EXPECT_TRUE(Close(inputs.RunBifurcated({0, 5}, {192}), inputs.Reference(), inputs.OutputShape(),
                    kAttentionTolerance));
}

TEST(BifurcatedAttention, MatchesTheFormulaWhenNothingIsShared) {
  Random random(2);
  const AttentionInputs inputs(random, {}, Rows(0, {1, 64, 65, 200, 7}));
  EXPECT_TRUE(Close(inputs.RunBifurcated({0, 3, 5}, {0, 0}), inputs.Reference(),
                    inputs.OutputShape(), kAttentionTolerance));
}

TEST(BifurcatedAttention, MatchesTheFormulaWhenAllIsShared) {
  Random random(3);
  const AttentionInputs inputs(random, {}, Rows(128, {0, 0, 0}), 128);
  EXPECT_TRUE(Close(inputs.RunBifurcated({0, 3}, {128}), inputs.Reference(), inputs.OutputShape(),
                    kAttentionTolerance));
}

TEST(BifurcatedAttention, TakesEmptyGroupsAndManyRows) {
  Random random(4);
  const AttentionInputs inputs(random, {.head_dim = 32}, Rows(64, std::vector<int>(100, 5)), 64);
  EXPECT_TRUE(Close(inputs.RunBifurcated({0, 0, 99, 99, 100}, {0, 64, 0, 64}), inputs.Reference(),
                    inputs.OutputShape(), kAttentionTolerance));
}

TEST(BifurcatedAttention, DoesNothingWithoutSequences) { cpu::BifurcatedAttention({}); }

// Only the first row's table may lead to the shared keys, so they are read once per group.
TEST(BifurcatedAttention, ReadsTheSharedPartThroughTheFirstRowAlone) {
  Random random(5);
  AttentionInputs inputs(random, {}, Rows(192, {1, 64, 65}), 192);
  const std::vector<double> want = inputs.Reference();
  for (int row = 1; row < 3; ++row) {
    std::fill_n(inputs.block_tables.begin() + row * inputs.max_blocks(), 192 / 64, kNoBlock);
  }
  EXPECT_TRUE(
      Close(inputs.RunBifurcated({0, 3}, {192}), want, inputs.OutputShape(), kAttentionTolerance));
}

// One random batch: groups of 1 to 6 rows that share 0 to 4 blocks, own parts of 1 to 100 keys.
// The cache's shared blocks are common to all groups; a group may declare fewer of them shared.
void ExpectEqualsPagedAttention(int seed) {
  Random random(seed);
  AttentionShape shape;
  const std::pair<int, int> heads[] = {{1, 1}, {4, 4}, {4, 1}, {8, 2}, {4, 2}};
  const int head_dims[] = {32, 64, 128}, block_sizes[] = {16, 64};
  std::tie(shape.num_heads, shape.num_kv_heads) = heads[RandomInt(random, 0, 4)];
  shape.head_dim = head_dims[RandomInt(random, 0, 2)];
  shape.block_size = block_sizes[RandomInt(random, 0, 1)];
  const DType kv_dtypes[] = {DType::kF32, DType::kBF16, DType::kF8E4M3};
  shape.kv_dtype = kv_dtypes[RandomInt(random, 0, 2)];
  shape.kv_scales = RandomInt(random, 0, 1);

  const int shared_blocks = RandomInt(random, 0, 4);
  std::vector<int32_t> group_start = {0}, prefix_len;
  std::vector<int> own_lens;
  for (int g = RandomInt(random, 1, 4); g > 0; --g) {
    for (int i = RandomInt(random, 1, 6); i > 0; --i) own_lens.push_back(RandomInt(random, 1, 100));
    group_start.push_back(static_cast<int32_t>(own_lens.size()));
    prefix_len.push_back(RandomInt(random, 0, shared_blocks) * shape.block_size);
  }
  const int shared_len = shared_blocks * shape.block_size;
  const AttentionInputs inputs(random, shape, Rows(shared_len, own_lens), shared_len);
  EXPECT_TRUE(SameBits(inputs.RunBifurcated(group_start, prefix_len), inputs.RunPaged(),
                       inputs.OutputShape()));
}

TEST(BifurcatedAttention, EqualsPagedAttentionBitByBitOnRandomGroups) {
  for (int seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    ExpectEqualsPagedAttention(seed);
    if (testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace bough
