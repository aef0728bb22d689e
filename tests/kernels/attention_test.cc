#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/testing/attention_inputs.h"
#include "tests/testing/compare.h"

namespace bough {
namespace {

// f32 sums of up to 300 products of numbers below 4, and weights that sum to 1.
constexpr Tolerance kAttentionTolerance = {.abs = 1e-5, .rel = 1e-5};

// num_q of seqlen_kv around the tiles: blocks of 64 keys, 16 queries of 2 heads.
const std::vector<SequenceShape> kShapes = {{1, 1},   {1, 2},   {1, 63},  {1, 64},   {1, 65},
                                            {1, 200}, {2, 2},   {15, 15}, {16, 16},  {17, 17},
                                            {33, 33}, {5, 200}, {64, 64}, {65, 130}, {130, 130}};

void ExpectMatchesReference(const AttentionShape& shape, const std::vector<SequenceShape>& seqs) {
  Random random(1);
  const AttentionInputs inputs(random, shape, seqs);
  EXPECT_TRUE(
      Close(inputs.RunPaged(), inputs.Reference(), inputs.OutputShape(), kAttentionTolerance));
}

TEST(PagedAttention, MatchesTheFormulaForEachShape) {
  for (const SequenceShape& seq : kShapes) {
    SCOPED_TRACE(testing::Message() << seq.num_q << " queries, " << seq.seqlen_kv << " keys");
    ExpectMatchesReference({}, {seq});
  }
}

TEST(PagedAttention, MatchesTheFormulaForABatchOfAllShapes) { ExpectMatchesReference({}, kShapes); }

TEST(PagedAttention, MatchesTheFormulaForEachHeadRatioAndHeadDim) {
  for (const auto& [num_heads, num_kv_heads] : {std::pair{1, 1}, {4, 4}, {6, 2}, {8, 1}, {70, 1}}) {
    for (int head_dim : {8, 32, 64, 80, 96, 128}) {
      SCOPED_TRACE(testing::Message() << num_heads << "/" << num_kv_heads << "x" << head_dim);
      ExpectMatchesReference(
          {.num_heads = num_heads, .num_kv_heads = num_kv_heads, .head_dim = head_dim},
          {{1, 70}, {19, 19}});
    }
  }
}

TEST(PagedAttention, MatchesTheFormulaForEachBlockSize) {
  for (int block_size : {1, 16, 48, 64, 80, 128}) {
    SCOPED_TRACE(block_size);
    ExpectMatchesReference({.head_dim = 32, .block_size = block_size}, {{1, 150}, {40, 100}});
  }
}

TEST(PagedAttention, WidensABF16Cache) {
  ExpectMatchesReference({.kv_dtype = DType::kBF16}, kShapes);
}

TEST(PagedAttention, WidensAnE4M3CacheAndMultipliesByItsScales) {
  for (int block_size : {16, 48, 64, 80, 128}) {
    ExpectMatchesReference({.block_size = block_size, .kv_dtype = DType::kF8E4M3}, kShapes);
  }
  ExpectMatchesReference({.kv_dtype = DType::kF8E4M3, .kv_scales = true}, kShapes);
  ExpectMatchesReference({.head_dim = 8, .kv_dtype = DType::kBF16, .kv_scales = true}, kShapes);
  ExpectMatchesReference({.head_dim = 8, .kv_dtype = DType::kF8E4M3, .kv_scales = true}, kShapes);
}

TEST(PagedAttentionDeathTest, RefusesE4M3BlocksThatSixteenDoesNotDivide) {
  PagedAttentionParams p;
  p.num_seqs = p.num_heads = p.num_kv_heads = 1;
  p.head_dim = p.block_size = 8;
  p.kv_dtype = DType::kF8E4M3;
  EXPECT_DEATH(cpu::PagedAttention(p), "a multiple of 16 keys, not 8");
}

// All 256 codes, as keys and as values: a lone key's weight is 1, so o is its value.
TEST(PagedAttention, ReadsEachE4M3CodeExactly) {
  std::vector<uint8_t> v_cache(256 * 16);
  for (int code = 0; code < 256; ++code) v_cache[code * 16 + ValueColumn(0)] = code;
  const std::vector<uint8_t> k_cache(v_cache.size(), 0);
  const std::vector<float> q(256, 1);
  std::vector<float> o(256);
  const std::vector<int32_t> block_tables = {0}, cu_seqlens_q = {0, 1}, seqlens_kv = {1};
  cpu::PagedAttention({.q = q.data(),
                       .k_cache = k_cache.data(),
                       .v_cache = v_cache.data(),
                       .block_tables = block_tables.data(),
                       .cu_seqlens_q = cu_seqlens_q.data(),
                       .seqlens_kv = seqlens_kv.data(),
                       .o = o.data(),
                       .max_seqlen_q = 1,
                       .num_seqs = 1,
                       .num_heads = 1,
                       .num_kv_heads = 1,
                       .head_dim = 256,
                       .block_size = 16,
                       .max_blocks = 1,
                       .q_stride = 256,
                       .kv_dtype = DType::kF8E4M3});
  for (int code = 0; code < 256; ++code) {
    const float want = E4M3ToFloat(static_cast<uint8_t>(code));
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(o[code])) << code;
    } else {
      EXPECT_EQ(o[code], want) << code;
    }
  }
}

TEST(PagedAttention, GivesZerosToAQueryWithoutKeys) {
  ExpectMatchesReference({}, {{1, 0}, {1, 9}, {1, 0}});
}

TEST(PagedAttention, SeesOnlyTheSlidingWindow) {
  for (int window : {1, 2, 63, 64, 65, 128, 1000}) {
    SCOPED_TRACE(window);
    ExpectMatchesReference({.sliding_window = window}, kShapes);
  }
}

TEST(PagedAttention, NeverReadsBlocksBeforeTheWindow) {
  Random random(2);
  AttentionInputs inputs(random, {.sliding_window = 50}, {{1, 300}});
  const std::vector<double> want = inputs.Reference();
  for (int block = 0; block < 3; ++block) inputs.block_tables[block] = kNoBlock;  // keys [0, 192)
  EXPECT_TRUE(Close(inputs.RunPaged(), want, inputs.OutputShape(), kAttentionTolerance));
}

TEST(PagedAttention, TakesSequencesWithoutQueries) {
  ExpectMatchesReference({}, {{0, 0}, {3, 3}, {0, 70}, {1, 9}, {0, 0}});
}

TEST(PagedAttention, DoesNothingWithoutSequences) { cpu::PagedAttention({}); }

// The rows of one sequence, queries [begin, end) of all, when only those are asked for.
std::vector<float> RunChunk(AttentionInputs inputs, int begin, int end, int q_stride) {
  inputs.q = {inputs.q.begin() + begin * q_stride, inputs.q.begin() + end * q_stride};
  inputs.cu_seqlens_q = {0, end - begin};
  inputs.seqlens_kv = {end};
  return inputs.RunPaged();
}

class PagedAttentionInChunks : public testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(PagedAttentionInChunks, GivesTheBitsOfOnePrefill) {
  const auto [chunk, window] = GetParam();
  constexpr int kNumTokens = 130, kQStride = (4 + 2 * 2) * 128;
  Random random(3);
  const AttentionInputs inputs(random, {.sliding_window = window}, {{kNumTokens, kNumTokens}});
  std::vector<float> got;
  for (int begin = 0; begin < kNumTokens; begin += chunk) {
    const std::vector<float> o =
        RunChunk(inputs, begin, std::min(begin + chunk, kNumTokens), kQStride);
    got.insert(got.end(), o.begin(), o.end());
  }
  EXPECT_TRUE(SameBits(got, inputs.RunPaged(), inputs.OutputShape()));
}

// Chunks of 1 are decode.
INSTANTIATE_TEST_SUITE_P(Chunks, PagedAttentionInChunks,
                         testing::Combine(testing::Values(1, 17, 64), testing::Values(0, 70)));

TEST(PagedAttention, GivesASequenceTheSameBitsInAnyBatch) {
  Random random(4);
  const AttentionInputs batch(random, {}, {{1, 100}, {20, 90}, {1, 65}});
  AttentionInputs alone = batch;
  alone.cu_seqlens_q = {0, 20};
  alone.seqlens_kv = {90};
  alone.q.erase(alone.q.begin(), alone.q.begin() + 8 * 128);
  alone.block_tables.erase(alone.block_tables.begin(),
                           alone.block_tables.begin() + batch.max_blocks());
  const std::vector<float> o = batch.RunPaged();
  const std::vector<float> rows(o.begin() + 4 * 128, o.begin() + 21 * 4 * 128);
  EXPECT_TRUE(SameBits(alone.RunPaged(), rows, {20, 4, 128}));
}

}  // namespace
}  // namespace bough
