#include "tests/kernels_cuda/device_attention.h"

namespace bough {
namespace {

// num_q of seqlen_kv around tiles of 16 and 32 keys, blocks of 64, and 32 query slots.
const std::vector<SequenceShape> kShapes = {
    {1, 1}, {1, 2},   {1, 31},  {1, 32},  {1, 33},  {1, 63},  {1, 64}, {1, 65},   {1, 200},
    {2, 2}, {31, 31}, {32, 32}, {33, 33}, {5, 200}, {64, 64}, {0, 70}, {65, 130}, {130, 130}};

class PagedAttention : public CudaTest {};

TEST_F(PagedAttention, MatchesTheFormulaForEachDTypeOfThePlainKernel) {
  for (DType kv_dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    ExpectPagedAgrees({.kv_dtype = kv_dtype, .kv_scales = true}, kShapes, DType::kF32);
    ExpectPagedAgrees({.kv_dtype = kv_dtype}, kDecodeShapes, DType::kF32);
  }
  for (DType kv_dtype : {DType::kBF16, DType::kF8E4M3}) {
    ExpectPagedAgrees({.head_dim = 32, .kv_dtype = kv_dtype}, kShapes, DType::kBF16);
    ExpectPagedAgrees({.head_dim = 128, .block_size = 32, .kv_dtype = kv_dtype}, kShapes,
                      DType::kBF16);
  }
}

TEST_F(PagedAttention, MatchesTheFormulaForEachHeadRatioAndHeadDimOfThePlainKernel) {
  for (const auto& [num_heads, num_kv_heads] : {std::pair{1, 1}, {4, 4}, {6, 2}, {8, 1}, {70, 1}}) {
    for (int head_dim : {32, 64, 96, 128}) {
      ExpectPagedAgrees(
          {.num_heads = num_heads, .num_kv_heads = num_kv_heads, .head_dim = head_dim},
          {{1, 70}, {19, 19}}, DType::kF32);
    }
  }
}

TEST_F(PagedAttention, MatchesTheFormulaForEachBlockSize) {
  for (int block_size : {1, 16, 48, 64, 80, 128}) {
    SCOPED_TRACE(block_size);
    ExpectPagedAgrees({.head_dim = 32, .block_size = block_size}, {{1, 150}, {40, 100}},
                      DType::kF32);
  }
}

TEST_F(PagedAttention, SeesOnlyTheSlidingWindow) {
  for (int window : {1, 2, 31, 32, 33, 64, 65, 1000}) {
    ExpectPagedAgrees({.sliding_window = window}, kShapes, DType::kF32);
    for (AttentionShape shape : kMmaShapes) {
      shape.sliding_window = window;
      ExpectPagedAgrees(shape, kShapes, DType::kBF16);
      ExpectPagedAgrees(shape, kDecodeShapes, DType::kBF16);
    }
  }
}

TEST_F(PagedAttention, NeverReadsBlocksBeforeTheWindow) {
  for (int num_q : {1, 2, 40}) {
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      Random random(2);
      const AttentionShape shape = {
          .kv_dtype = DType::kBF16, .sliding_window = 50, .unused = 300};
      AttentionInputs inputs(random, shape, {{num_q, 300}});
      inputs.q = Rounded(inputs.q, dtype);
      const std::vector<double> want = inputs.Reference();
      for (int block = 0; block < 3; ++block) inputs.block_tables[block] = kNoBlock;  // keys < 192
      const auto got = DeviceAttention(inputs, dtype).Run(inputs.Paged());
      EXPECT_TRUE(Close(got, want, inputs.OutputShape(), ToleranceOf(shape, dtype)));
    }
  }
}

TEST_F(PagedAttention, DoesNothingWithoutSequences) { cuda::PagedAttention({}, nullptr); }

TEST_F(PagedAttention, GivesASequenceTheSameBitsInAnyBatch) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Random random(4);
    const AttentionInputs batch(random, {.kv_dtype = DType::kBF16, .unused = 300},
                                {{1, 100}, {20, 90}, {1, 65}});
    AttentionInputs alone = batch;
    alone.cu_seqlens_q = {0, 20};
    alone.seqlens_kv = {90};
    alone.q.erase(alone.q.begin(), alone.q.begin() + 8 * 128);
    alone.block_tables.erase(alone.block_tables.begin(),
                             alone.block_tables.begin() + batch.max_blocks());
    const auto o = DeviceAttention(batch, dtype).Run(batch.Paged());
    const std::vector<float> rows(o.begin() + 4 * 128, o.begin() + 21 * 4 * 128);
    const auto got = DeviceAttention(alone, dtype).Run(alone.Paged());
    EXPECT_TRUE(SameBits(got, rows, {20, 4, 128}));
  }
}

TEST(AttentionDeathTest, RefusesHeadDimAndDTypesByName) {
  PagedAttentionParams p = {
      .num_seqs = 1, .num_heads = 1, .num_kv_heads = 1, .head_dim = 80, .block_size = 64};
  EXPECT_DEATH(cuda::PagedAttention(p, nullptr), "head_dim is 80, CUDA takes 32, 64, 96 or 128");
  p.kv_dtype = DType::kF16;
  EXPECT_DEATH(cuda::PagedAttention(p, nullptr), "q is f32 and the cache f16, CUDA takes");
}

}  // namespace
}  // namespace bough
