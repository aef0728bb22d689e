#include "kernels/attention.h"

#include <numeric>

#include "tests/kernels_cuda/device_tensor.h"
#include "tests/testing/attention_inputs.h"
#include "tests/testing/compare.h"

namespace bough {
namespace {

// f32 sums of up to 300 products of numbers below 4, and weights that sum to 1.
constexpr Tolerance kF32Tolerance = {.abs = 1e-5, .rel = 1e-5};
// bf16 answers. The plain kernel's sums are f32 too; tensor cores take weights p rounded to bf16 (f16
// with an e4m3 cache), so the answer is off by up to 2^-9 (2^-12) sum p |v| / sum p, |v| <= 2, times
// a v_scale of up to 2.
constexpr Tolerance kBF16Tolerance = {.abs = 1e-5, .rel = 1.0 / 256};
constexpr Tolerance kBF16WeightsTolerance = {.abs = 8e-3, .rel = 1.0 / 256};
constexpr Tolerance kF16WeightsTolerance = {.abs = 1e-3, .rel = 1.0 / 256};

Tolerance ToleranceOf(const AttentionShape& shape, DType dtype) {
  if (dtype == DType::kF32) return kF32Tolerance;
  if (shape.block_size != 64 || shape.head_dim % 64 != 0) return kBF16Tolerance;
  return shape.kv_dtype == DType::kBF16 ? kBF16WeightsTolerance : kF16WeightsTolerance;
}

// One for all launches, zeroed once: every launch must leave its counters zero.
void* Workspace() {
  static void* const workspace = [] {
    void* memory = nullptr;
    const int64_t num_bytes = cuda::AttentionWorkspaceBytes(512, 32, 128);
    CUDA_CHECK(cudaMalloc(&memory, num_bytes));
    CUDA_CHECK(cudaMemset(memory, 0, num_bytes));
    return memory;
  }();
  return workspace;
}

// Copies a batch to the device and runs an op over it there.
class DeviceAttention {
 public:
  // q and o of `dtype`.
  DeviceAttention(const AttentionInputs& inputs, DType dtype)
      : dtype_(dtype),
        q_(inputs.q, dtype),
        k_(inputs.k_bytes()),
        v_(inputs.v_bytes()),
        k_scale_(inputs.k_scale),
        v_scale_(inputs.v_scale),
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

  std::vector<float> Output() const { return o_.Floats(); }
  int32_t* seqlens_kv() const { return seqlens_kv_.as<int32_t>(); }

  template <typename Params>
  void Point(Params& p) const {
    p.q = q_.data();
    p.k_cache = k_.as<void>();
    p.v_cache = v_.as<void>();
    if (p.k_scale != nullptr) p.k_scale = k_scale_.as<float>();
    if (p.v_scale != nullptr) p.v_scale = v_scale_.as<float>();
    p.block_tables = block_tables_.as<int32_t>();
    p.seqlens_kv = seqlens_kv_.as<int32_t>();
    p.o = o_.data();
    p.workspace = Workspace();
    p.dtype = dtype_;
  }

 private:
  DType dtype_;
  DeviceTensor q_;
  DeviceBytes k_, v_, k_scale_, v_scale_, block_tables_, seqlens_kv_;
  DeviceTensor o_;
};

std::vector<double> Doubles(const std::vector<float>& v) { return {v.begin(), v.end()}; }

// num_q of seqlen_kv around tiles of 16 and 32 keys, blocks of 64, and 32 query slots.
const std::vector<SequenceShape> kShapes = {
    {1, 1}, {1, 2},   {1, 31},  {1, 32},  {1, 33},  {1, 63},  {1, 64}, {1, 65},   {1, 200},
    {2, 2}, {31, 31}, {32, 32}, {33, 33}, {5, 200}, {64, 64}, {0, 70}, {65, 130}, {130, 130}};
const std::vector<SequenceShape> kDecodeShapes = {
    {1, 0},  {1, 1},  {1, 15}, {1, 16},  {1, 17},  {1, 31},  {1, 32}, {1, 33},  {0, 70},  {1, 47},
    {1, 63}, {1, 64}, {1, 65}, {1, 127}, {1, 128}, {1, 129}, {1, 0},  {1, 200}, {1, 900}, {1, 0}};
const std::vector<std::pair<int, int>> kHeads = {{1, 1}, {4, 4}, {8, 2},  {12, 4},
                                                 {8, 1}, {9, 1}, {16, 1}, {32, 8}};
const std::vector<AttentionShape> kMmaShapes = {
    {.head_dim = 64, .kv_dtype = DType::kBF16},
    {.head_dim = 128, .kv_dtype = DType::kBF16},
    {.head_dim = 64, .kv_dtype = DType::kF8E4M3, .kv_scales = true},
    {.head_dim = 128, .kv_dtype = DType::kF8E4M3, .kv_scales = true}};

std::string Print(const AttentionShape& s) {
  return std::string(Name(s.kv_dtype)) + " " + std::to_string(s.num_heads) + "/" +
         std::to_string(s.num_kv_heads) + "x" + std::to_string(s.head_dim) + " window " +
         std::to_string(s.sliding_window);
}

// `q_scale` above 1 lets few keys weigh most, so that a lost one shows.
void ExpectPagedAgrees(const AttentionShape& shape, const std::vector<SequenceShape>& seqs,
                       DType dtype, float q_scale = 1) {
  SCOPED_TRACE(Print(shape));
  Random random(1);
  AttentionInputs inputs(random, shape, seqs);
  for (float& x : inputs.q) x *= q_scale;
  inputs.q = Rounded(inputs.q, dtype);
  const auto got = DeviceAttention(inputs, dtype).Run(inputs.Paged(), inputs.cu_seqlens_q);
  EXPECT_TRUE(
      Close(got, Doubles(inputs.RunPaged()), inputs.OutputShape(), ToleranceOf(shape, dtype)));
}

class PagedAttention : public CudaTest {};

TEST_F(PagedAttention, DecodesForEachCacheAndHeadRatio) {
  for (AttentionShape shape : kMmaShapes) {
    for (const auto& [num_heads, num_kv_heads] : kHeads) {
      shape.num_heads = num_heads;
      shape.num_kv_heads = num_kv_heads;
      ExpectPagedAgrees(shape, kDecodeShapes, DType::kBF16);
    }
  }
}

TEST_F(PagedAttention, DecodesLongSequencesInManyParts) {
  for (AttentionShape shape : kMmaShapes) {
    shape.num_heads = 8;
    ExpectPagedAgrees(shape, {{1, 16001}}, DType::kBF16, 3);
    ExpectPagedAgrees(shape, {{1, 5}, {1, 64}, {1, 9000}, {1, 1}, {1, 700}}, DType::kBF16, 3);
  }
}

TEST_F(PagedAttention, DecodesMoreSequencesThanThreadBlocks) {
  std::vector<SequenceShape> seqs;
  for (int s = 0; s < 500; ++s) seqs.push_back({1, s * 7 % 150});
  for (AttentionShape shape : kMmaShapes) {
    shape.num_heads = 16;
    shape.num_kv_heads = 4;
    ExpectPagedAgrees(shape, seqs, DType::kBF16);
  }
}

TEST_F(PagedAttention, PrefillsForEachCacheAndHeadRatio) {
  for (AttentionShape shape : kMmaShapes) {
    for (const auto& [num_heads, num_kv_heads] : kHeads) {
      shape.num_heads = num_heads;
      shape.num_kv_heads = num_kv_heads;
      ExpectPagedAgrees(shape, kShapes, DType::kBF16);
    }
  }
}

TEST_F(PagedAttention, PrefillsLongSequences) {
  for (AttentionShape shape : kMmaShapes) {
    shape.num_heads = 8;
    ExpectPagedAgrees(shape, {{700, 700}, {1, 333}, {300, 2000}, {129, 129}, {3, 3000}},
                      DType::kBF16, 3);
  }
}

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
  for (int num_q : {1, 2}) {
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      Random random(2);
      const AttentionShape shape = {.kv_dtype = DType::kBF16, .sliding_window = 50};
      AttentionInputs inputs(random, shape, {{num_q, 300}});
      inputs.q = Rounded(inputs.q, dtype);
      const std::vector<double> want = inputs.Reference();
      for (int block = 0; block < 3; ++block) inputs.block_tables[block] = kNoBlock;  // keys < 192
      const auto got = DeviceAttention(inputs, dtype).Run(inputs.Paged(), inputs.cu_seqlens_q);
      EXPECT_TRUE(Close(got, want, inputs.OutputShape(), ToleranceOf(shape, dtype)));
    }
  }
}

TEST_F(PagedAttention, DoesNothingWithoutSequences) { cuda::PagedAttention({}, nullptr); }

TEST_F(PagedAttention, GivesASequenceTheSameBitsInAnyBatch) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Random random(4);
    const AttentionInputs batch(random, {.kv_dtype = DType::kBF16}, {{1, 100}, {20, 90}, {1, 65}});
    AttentionInputs alone = batch;
    alone.cu_seqlens_q = {0, 20};
    alone.seqlens_kv = {90};
    alone.q.erase(alone.q.begin(), alone.q.begin() + 8 * 128);
    alone.block_tables.erase(alone.block_tables.begin(),
                             alone.block_tables.begin() + batch.max_blocks());
    const auto o = DeviceAttention(batch, dtype).Run(batch.Paged(), batch.cu_seqlens_q);
    const std::vector<float> rows(o.begin() + 4 * 128, o.begin() + 21 * 4 * 128);
    const auto got = DeviceAttention(alone, dtype).Run(alone.Paged(), alone.cu_seqlens_q);
    EXPECT_TRUE(SameBits(got, rows, {20, 4, 128}));
  }
}

TEST_F(PagedAttention, GivesTheBitsOfOnePrefillInChunks) {
  constexpr int kNumTokens = 260, kQStride = (4 + 2 * 2) * 128;
  for (AttentionShape shape : kMmaShapes) {
    if (shape.head_dim != 128) continue;
    for (int window : {0, 70}) {
      shape.sliding_window = window;
      Random random(3);
      const AttentionInputs whole(random, shape, {{kNumTokens, kNumTokens}});
      const auto want = DeviceAttention(whole, DType::kBF16).Run(whole.Paged(), whole.cu_seqlens_q);
      for (int chunk : {2, 17, 64}) {
        std::vector<float> got;
        for (int begin = 0; begin < kNumTokens; begin += chunk) {
          const int end = std::min(begin + chunk, kNumTokens);
          AttentionInputs part = whole;
          part.q = {whole.q.begin() + begin * kQStride, whole.q.begin() + end * kQStride};
          part.cu_seqlens_q = {0, end - begin};
          part.seqlens_kv = {end};
          const auto o = DeviceAttention(part, DType::kBF16).Run(part.Paged(), part.cu_seqlens_q);
          got.insert(got.end(), o.begin(), o.end());
        }
        EXPECT_TRUE(SameBits(got, want, whole.OutputShape())) << Print(shape) << " by " << chunk;
      }
    }
  }
}

// The same graph serves other lengths, padding rows among them, and gives the same bits each time.
TEST_F(PagedAttention, ReplaysAGraphWithOtherLengths) {
  Random random(7);
  const AttentionShape shape = {
      .num_heads = 8, .num_kv_heads = 2, .kv_dtype = DType::kF8E4M3, .kv_scales = true};
  AttentionInputs inputs(random, shape, {{1, 3000}, {1, 100}, {1, 640}, {1, 1}});
  inputs.q = Rounded(inputs.q, DType::kBF16);
  DeviceAttention device(inputs, DType::kBF16);
  const DeviceBytes cu_seqlens_q(inputs.cu_seqlens_q);
  PagedAttentionParams p = inputs.Paged();
  device.Point(p);
  p.cu_seqlens_q = cu_seqlens_q.as<int32_t>();

  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CUDA_CHECK(cudaStreamCreate(&stream));
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  cuda::PagedAttention(p, stream);
  cuda::PagedAttention(p, stream);
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  for (const std::vector<int32_t>& lens : std::vector<std::vector<int32_t>>{
           {3000, 100, 640, 1}, {3000, 0, 0, 0}, {2, 99, 640, 0}, {0, 0, 0, 0}}) {
    inputs.seqlens_kv = lens;
    CUDA_CHECK(cudaMemcpy(device.seqlens_kv(), lens.data(), lens.size() * sizeof(int32_t),
                          cudaMemcpyHostToDevice));
    std::vector<float> first;
    for (int replay = 0; replay < 20; ++replay) {
      CUDA_CHECK(cudaMemset(p.o, 0xff, inputs.EmptyOutput().size() * 2));  // NaN
      CUDA_CHECK(cudaGraphLaunch(exec, stream));
      const auto got = device.Output();
      if (replay == 0) first = got;
      ASSERT_TRUE(SameBits(got, first, inputs.OutputShape())) << "replay " << replay;
    }
    EXPECT_TRUE(
        Close(first, Doubles(inputs.RunPaged()), inputs.OutputShape(), kF16WeightsTolerance));
  }
  CUDA_CHECK(cudaGraphExecDestroy(exec));
  CUDA_CHECK(cudaGraphDestroy(graph));
  CUDA_CHECK(cudaStreamDestroy(stream));
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
                            const std::vector<int32_t>& prefix_lens, DType dtype,
                            float q_scale = 1) {
  SCOPED_TRACE(Print(shape));
  Random random(5);
  AttentionInputs inputs(random, shape, Rows(prefix_len, own_lens), prefix_len);
  for (float& x : inputs.q) x *= q_scale;
  inputs.q = Rounded(inputs.q, dtype);
  const auto want = Doubles(inputs.RunPaged());
  // Only a group's first row may lead to the shared keys.
  for (size_t g = 0; g < prefix_lens.size(); ++g) {
    for (int row = group_start[g] + 1; row < group_start[g + 1]; ++row) {
      std::fill_n(inputs.block_tables.begin() + row * inputs.max_blocks(),
                  prefix_lens[g] / shape.block_size, kNoBlock);
    }
  }
  const auto got = DeviceAttention(inputs, dtype)
                       .Run(inputs.Bifurcated(group_start, prefix_lens), group_start, prefix_lens);
  EXPECT_TRUE(Close(got, want, inputs.OutputShape(), ToleranceOf(shape, dtype)));
}

class BifurcatedAttention : public CudaTest {};

TEST_F(BifurcatedAttention, MatchesThePlainFormulaForEachCacheAndHeadRatio) {
  const std::vector<int> own = {1, 64, 65, 200, 7};
  for (AttentionShape shape : kMmaShapes) {
    for (const auto& [num_heads, num_kv_heads] : kHeads) {
      shape.num_heads = num_heads;
      shape.num_kv_heads = num_kv_heads;
      ExpectBifurcatedAgrees(shape, 192, own, {0, 5}, {192}, DType::kBF16);
    }
  }
}

TEST_F(BifurcatedAttention, TakesGroupsOfAnySizeAndPrefix) {
  std::vector<int> own;
  for (int row = 0; row < 1 + 3 + 4 + 5 + 17 + 70; ++row) own.push_back(1 + row * 13 % 140);
  for (AttentionShape shape : kMmaShapes) {
    for (const auto& [num_heads, num_kv_heads] : {std::pair{8, 2}, {4, 4}, {6, 2}, {16, 1}}) {
      shape.num_heads = num_heads;
      shape.num_kv_heads = num_kv_heads;
      ExpectBifurcatedAgrees(shape, 320, own, {0, 1, 4, 8, 13, 13, 30, 100},
                             {64, 320, 0, 128, 64, 256, 320}, DType::kBF16);
    }
  }
}

TEST_F(BifurcatedAttention, TakesALongPrefix) {
  for (AttentionShape shape : kMmaShapes) {
    shape.num_heads = 16;
    ExpectBifurcatedAgrees(shape, 8192, {1, 100, 64, 1, 7, 33, 900, 1, 2}, {0, 2, 9}, {8192, 6400},
                           DType::kBF16, 3);
  }
}

TEST_F(BifurcatedAttention, WritesZerosToPaddingRows) {
  // The last group is padding; rows of it have no keys and no block.
  for (const AttentionShape& shape : kMmaShapes) {
    ExpectBifurcatedAgrees(shape, 128, {5, 70, -128, -128, -128}, {0, 2, 5}, {128, 0},
                           DType::kBF16);
    ExpectBifurcatedAgrees(shape, 128, {-128, -128}, {0, 2}, {0}, DType::kBF16);
  }
}

TEST_F(BifurcatedAttention, MatchesTheFormulaWhenNothingOrAllIsShared) {
  std::vector<AttentionShape> shapes = kMmaShapes;
  shapes.push_back({});
  for (const AttentionShape& shape : shapes) {
    const DType dtype = shape.kv_dtype == DType::kF32 ? DType::kF32 : DType::kBF16;
    ExpectBifurcatedAgrees(shape, 0, {1, 64, 65, 200, 7}, {0, 3, 5}, {0, 0}, dtype);
    ExpectBifurcatedAgrees(shape, 128, {0, 0, 0}, {0, 3}, {128}, dtype);
  }
}

TEST_F(BifurcatedAttention, MatchesTheFormulaForEachDTypeOfThePlainKernel) {
  for (DType kv_dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    ExpectBifurcatedAgrees({.kv_dtype = kv_dtype, .kv_scales = true}, 192, {1, 64, 65, 200, 7},
                           {0, 5}, {192}, DType::kF32);
  }
  const std::vector<int> own(100, 5);
  for (int head_dim : {32, 64, 96, 128}) {
    ExpectBifurcatedAgrees({.head_dim = head_dim}, 64, own, {0, 0, 99, 99, 100}, {0, 64, 0, 64},
                           DType::kF32);
  }
  ExpectBifurcatedAgrees({.num_heads = 6, .block_size = 48}, 96, own, {0, 40, 100}, {96, 48},
                         DType::kF32);
}

TEST_F(BifurcatedAttention, DoesNothingWithoutSequences) { cuda::BifurcatedAttention({}, nullptr); }

TEST(AttentionDeathTest, RefusesHeadDimAndDTypesByName) {
  PagedAttentionParams p = {
      .num_seqs = 1, .num_heads = 1, .num_kv_heads = 1, .head_dim = 80, .block_size = 64};
  EXPECT_DEATH(cuda::PagedAttention(p, nullptr), "head_dim is 80, CUDA takes 32, 64, 96 or 128");
  p.kv_dtype = DType::kF16;
  EXPECT_DEATH(cuda::PagedAttention(p, nullptr), "q is f32 and the cache f16, CUDA takes");
}

}  // namespace
}  // namespace bough
