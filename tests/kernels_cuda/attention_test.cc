#include "kernels/attention.h"

#include "tests/kernels_cuda/device_tensor.h"
#include "tests/testing/attention_inputs.h"
#include "tests/testing/compare.h"

namespace bough {
namespace {

// f32 sums of up to 300 products of numbers below 4, and weights that sum to 1.
constexpr Tolerance kF32Tolerance = {.abs = 1e-5, .rel = 1e-5};
// The answer's rounding; the sums are f32 here too.
constexpr Tolerance kBF16Tolerance = {.abs = 1e-5, .rel = 1.0 / 256};

Tolerance ToleranceOf(DType dtype) { return dtype == DType::kF32 ? kF32Tolerance : kBF16Tolerance; }

// Copies a batch to the device and runs an op over it there.
class DeviceAttention {
 public:
  // q and o of `dtype`.
  DeviceAttention(const AttentionInputs& inputs, DType dtype)
      : dtype_(dtype),
        q_(inputs.q, dtype),
        k_(inputs.k_bytes()),
        v_(inputs.v_bytes()),
        block_tables_(inputs.block_tables),
        seqlens_kv_(inputs.seqlens_kv),
        o_(inputs.EmptyOutput(), dtype) {}

  std::vector<float> Run(PagedAttentionParams p, const std::vector<int32_t>& cu_seqlens_q) {
    const DeviceBytes device_cu_seqlens_q(cu_seqlens_q);
    Point(p);
    p.cu_seqlens_q = device_cu_seqlens_q.as<int32_t>();
    cuda::PagedAttention(p, nullptr);
    return o_.Floats();
  }

  std::vector<float> Run(BifurcatedAttentionParams p, const std::vector<int32_t>& group_start,
                         const std::vector<int32_t>& prefix_len) {
    const DeviceBytes device_group_start(group_start), device_prefix_len(prefix_len);
    Point(p);
    p.group_start = device_group_start.as<int32_t>();
    p.prefix_len = device_prefix_len.as<int32_t>();
    cuda::BifurcatedAttention(p, nullptr);
    return o_.Floats();
  }

 private:
  template <typename Params>
  void Point(Params& p) const {
    p.q = q_.data();
    p.k_cache = k_.as<void>();
    p.v_cache = v_.as<void>();
    p.block_tables = block_tables_.as<int32_t>();
    p.seqlens_kv = seqlens_kv_.as<int32_t>();
    p.o = o_.data();
    p.dtype = dtype_;
  }

  DType dtype_;
  DeviceTensor q_;
  DeviceBytes k_, v_, block_tables_, seqlens_kv_;
  DeviceTensor o_;
};

// num_q of seqlen_kv around chunks of 32 keys, blocks of 64 and 32 query slots.
const std::vector<SequenceShape> kShapes = {
    {1, 1}, {1, 2},   {1, 31},  {1, 32},  {1, 33},  {1, 63},  {1, 64}, {1, 65},   {1, 200},
    {2, 2}, {31, 31}, {32, 32}, {33, 33}, {5, 200}, {64, 64}, {0, 70}, {65, 130}, {130, 130}};

void ExpectPagedAgrees(const AttentionShape& shape, const std::vector<SequenceShape>& seqs,
                       DType dtype) {
  Random random(1);
  AttentionInputs inputs(random, shape, seqs);
  inputs.q = Rounded(inputs.q, dtype);
  const auto got = DeviceAttention(inputs, dtype).Run(inputs.Paged(), inputs.cu_seqlens_q);
  EXPECT_TRUE(Close(got, inputs.Reference(), inputs.OutputShape(), ToleranceOf(dtype)));
}

class PagedAttention : public CudaTest {};

TEST_F(PagedAttention, MatchesTheFormulaForEachDType) {
  ExpectPagedAgrees({}, kShapes, DType::kF32);
  ExpectPagedAgrees({.kv_dtype = DType::kBF16}, kShapes, DType::kF32);
  ExpectPagedAgrees({.kv_dtype = DType::kBF16}, kShapes, DType::kBF16);
}

TEST_F(PagedAttention, MatchesTheFormulaForEachHeadRatioAndHeadDim) {
  for (const auto& [num_heads, num_kv_heads] : {std::pair{1, 1}, {4, 4}, {6, 2}, {8, 1}, {70, 1}}) {
    for (int head_dim : {32, 64, 96, 128}) {
      SCOPED_TRACE(testing::Message() << num_heads << "/" << num_kv_heads << "x" << head_dim);
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
    SCOPED_TRACE(window);
    ExpectPagedAgrees({.sliding_window = window}, kShapes, DType::kF32);
  }
}

TEST_F(PagedAttention, NeverReadsBlocksBeforeTheWindow) {
  Random random(2);
  AttentionInputs inputs(random, {.sliding_window = 50}, {{1, 300}});
  const std::vector<double> want = inputs.Reference();
  for (int block = 0; block < 3; ++block) inputs.block_tables[block] = kNoBlock;  // keys [0, 192)
  const auto got = DeviceAttention(inputs, DType::kF32).Run(inputs.Paged(), inputs.cu_seqlens_q);
  EXPECT_TRUE(Close(got, want, inputs.OutputShape(), kF32Tolerance));
}

TEST_F(PagedAttention, GivesASequenceTheSameBitsInAnyBatch) {
  Random random(4);
  const AttentionInputs batch(random, {}, {{1, 100}, {20, 90}, {1, 65}});
  AttentionInputs alone = batch;
  alone.cu_seqlens_q = {0, 20};
  alone.seqlens_kv = {90};
  alone.q.erase(alone.q.begin(), alone.q.begin() + 8 * 128);
  alone.block_tables.erase(alone.block_tables.begin(),
                           alone.block_tables.begin() + batch.max_blocks());
  const auto o = DeviceAttention(batch, DType::kF32).Run(batch.Paged(), batch.cu_seqlens_q);
  const std::vector<float> rows(o.begin() + 4 * 128, o.begin() + 21 * 4 * 128);
  const auto got = DeviceAttention(alone, DType::kF32).Run(alone.Paged(), alone.cu_seqlens_q);
  EXPECT_TRUE(SameBits(got, rows, {20, 4, 128}));
}

// Decode rows of which each shares `prefix_len` keys and has its own.
std::vector<SequenceShape> Rows(int prefix_len, const std::vector<int>& own_lens) {
  std::vector<SequenceShape> rows;
  for (int own : own_lens) rows.push_back({1, prefix_len + own});
  return rows;
}

void ExpectBifurcatedAgrees(const AttentionShape& shape, int prefix_len,
                            const std::vector<int>& own_lens,
                            const std::vector<int32_t>& group_start,
                            const std::vector<int32_t>& prefix_lens, DType dtype) {
  Random random(5);
  AttentionInputs inputs(random, shape, Rows(prefix_len, own_lens), prefix_len);
  inputs.q = Rounded(inputs.q, dtype);
  const std::vector<double> want = inputs.Reference();
  // Only a group's first row may lead to the shared keys.
  for (size_t g = 0; g < prefix_lens.size(); ++g) {
    for (int row = group_start[g] + 1; row < group_start[g + 1]; ++row) {
      std::fill_n(inputs.block_tables.begin() + row * inputs.max_blocks(),
                  prefix_lens[g] / shape.block_size, kNoBlock);
    }
  }
  const auto got = DeviceAttention(inputs, dtype)
                       .Run(inputs.Bifurcated(group_start, prefix_lens), group_start, prefix_lens);
  EXPECT_TRUE(Close(got, want, inputs.OutputShape(), ToleranceOf(dtype)));
}

class BifurcatedAttention : public CudaTest {};

TEST_F(BifurcatedAttention, MatchesTheFormulaForEachDType) {
  const std::vector<int> own = {1, 64, 65, 200, 7};
  ExpectBifurcatedAgrees({}, 192, own, {0, 5}, {192}, DType::kF32);
  ExpectBifurcatedAgrees({.kv_dtype = DType::kBF16}, 192, own, {0, 5}, {192}, DType::kF32);
  ExpectBifurcatedAgrees({.kv_dtype = DType::kBF16}, 192, own, {0, 5}, {192}, DType::kBF16);
}

TEST_F(BifurcatedAttention, MatchesTheFormulaWhenNothingOrAllIsShared) {
  ExpectBifurcatedAgrees({}, 0, {1, 64, 65, 200, 7}, {0, 3, 5}, {0, 0}, DType::kF32);
  ExpectBifurcatedAgrees({}, 128, {0, 0, 0}, {0, 3}, {128}, DType::kF32);
}

TEST_F(BifurcatedAttention, TakesEmptyGroupsManyRowsAndOddBlocks) {
  const std::vector<int> own(100, 5);
  for (int head_dim : {32, 64, 96, 128}) {
    ExpectBifurcatedAgrees({.head_dim = head_dim}, 64, own, {0, 0, 99, 99, 100}, {0, 64, 0, 64},
                           DType::kF32);
  }
  ExpectBifurcatedAgrees({.num_heads = 6, .block_size = 48}, 96, own, {0, 40, 100}, {96, 48},
                         DType::kF32);
}

TEST(AttentionDeathTest, RefusesHeadDimAndDTypesByName) {
  PagedAttentionParams p = {
      .num_seqs = 1, .num_heads = 1, .num_kv_heads = 1, .head_dim = 80, .block_size = 64};
  EXPECT_DEATH(cuda::PagedAttention(p, nullptr), "head_dim is 80, CUDA takes 32, 64, 96 or 128");
  p.kv_dtype = DType::kF8E4M3;
  EXPECT_DEATH(cuda::PagedAttention(p, nullptr), "q is f32 and the cache f8_e4m3, CUDA takes");
}

}  // namespace
}  // namespace bough
