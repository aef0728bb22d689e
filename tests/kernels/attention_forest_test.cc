// Attention over shared nodes.
#include <gtest/gtest.h>

#include "kernels/attention.h"
#include "tests/testing/attention_inputs.h"
#include "tests/testing/compare.h"

namespace bough {
namespace {

// f32 sums of up to 600 products of numbers below 4, and weights that sum to 1.
constexpr Tolerance kAttentionTolerance = {.abs = 1e-5, .rel = 1e-5};

// Three levels over six decode rows and two that share nothing:
//   [0, 5) keys [0, 192)   [0, 2) keys [192, 256)   [2, 5) keys [192, 320)   [3, 5) [320, 384)
const ForestShape kThreeLevels = {
    .seqs = {{1, 257}, {1, 320}, {1, 330}, {1, 585}, {1, 400}, {1, 70}, {1, 1}},
    .nodes = {{0, 5, 0, 192}, {0, 2, 192, 256}, {2, 5, 192, 320}, {3, 5, 320, 384}}};

TEST(SharedNodes, MatchTheFormulaOnThreeLevels) {
  for (DType kv_dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    for (int window : {0, 40, 100, 300}) {
      SCOPED_TRACE(testing::Message() << Name(kv_dtype) << " window " << window);
      Random random(1);
      const AttentionShape shape = {
          .kv_dtype = kv_dtype, .sliding_window = window, .kv_scales = true};
      const AttentionInputs inputs(random, shape, kThreeLevels);
      EXPECT_TRUE(
          Close(inputs.RunPaged(), inputs.Reference(), inputs.OutputShape(), kAttentionTolerance));
    }
  }
}

TEST(SharedNodes, AreReadThroughTheFirstSequenceAlone) {
  Random random(2);
  AttentionInputs inputs(random, {}, kThreeLevels);
  const std::vector<double> want = inputs.Reference();
  inputs.HideSharedBlocks();
  EXPECT_TRUE(Close(inputs.RunPaged(), want, inputs.OutputShape(), kAttentionTolerance));
}

TEST(SharedNodes, ServeManyRows) {
  Random random(3);
  ForestShape forest = {.seqs = {}, .nodes = {{0, 100, 0, 64}}};
  for (int s = 0; s < 100; ++s) forest.seqs.push_back({1, 64 + 1 + s % 7});
  const AttentionInputs inputs(random, {.head_dim = 32}, forest);
  EXPECT_TRUE(
      Close(inputs.RunPaged(), inputs.Reference(), inputs.OutputShape(), kAttentionTolerance));
}

TEST(SharedNodes, GiveTheBitsOfPlainAttention) {
  for (int seed = 0; seed < 10'000; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Random random(seed);
    constexpr std::pair<int, int> kHeads[] = {{1, 1}, {2, 2}, {4, 1}, {4, 2}};
    constexpr DType kKvDTypes[] = {DType::kF32, DType::kBF16, DType::kF8E4M3};
    AttentionShape shape;
    std::tie(shape.num_heads, shape.num_kv_heads) = kHeads[RandomInt(random, 0, 3)];
    shape.head_dim = 8 << RandomInt(random, 0, 1);
    shape.block_size = 16;
    shape.kv_dtype = kKvDTypes[RandomInt(random, 0, 2)];
    shape.sliding_window = RandomInt(random, 0, 1) * RandomInt(random, 1, 80);
    const ForestShape forest =
        RandomForest(random, {.block_size = 16, .max_own_keys = 30, .max_q = 3});
    AttentionInputs inputs(random, shape, forest);
    const std::vector<float> want = inputs.RunPlain();
    inputs.HideSharedBlocks();
    ASSERT_TRUE(SameBits(inputs.RunPaged(), want, inputs.OutputShape()));
  }
}

// What the op promises to refuse, from a batch that it takes.
struct BadForest {
  const char* message;
  std::vector<SharedNode> nodes;
};

TEST(SharedNodesDeathTest, RefuseWhatIsNoForest) {
  const BadForest kBad[] = {
      {"sequences \\[0, 8\\) of 7", {{0, 8, 0, 64}}},
      {"keys \\[0, 65\\)", {{0, 5, 0, 65}}},
      {"some of another's", {{0, 3, 0, 64}, {2, 5, 64, 128}}},
      {"node 1, sequence 0", {{0, 5, 0, 64}, {0, 5, 128, 192}}},
      {"reaches into the queries", {{0, 1, 0, 320}}},
      {"sequence 0", {{0, 5, 0, 64}}},  // own_begin says 256
      {"nodes around node 4",
       {{0, 1, 0, 64}, {0, 1, 64, 128}, {0, 1, 128, 192}, {0, 1, 192, 256}, {0, 1, 256, 320}}}};
  Random random(4);
  const AttentionInputs inputs(random, {.head_dim = 8}, kThreeLevels);
  std::vector<float> o = inputs.EmptyOutput();
  for (const BadForest& bad : kBad) {
    PagedAttentionParams p = inputs.Paged();
    p.o = o.data();
    p.nodes = bad.nodes.data();
    p.num_nodes = static_cast<int>(bad.nodes.size());
    EXPECT_DEATH(cpu::PagedAttention(p), bad.message);
  }
}

}  // namespace
}  // namespace bough
