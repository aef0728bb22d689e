// Sequences with many queries: the tile kernels, precise and with e4m3 products, beside the CPU.
#include <cmath>

#include "tests/kernels_cuda/device_attention.h"

namespace bough {
namespace {

// e4m3 q and weights keep four bits; relative RMS of a whole answer whose scores are below 5 or so.
constexpr double kFp8ProductsError = 4e-2;

// num_q of seqlen_kv around the cache's blocks of 64 keys and tiles of 128 keys and 128 rows; offsets
// of chunks and of prefix hits.
const std::vector<SequenceShape> kPrefills = {
    {2, 2},     {17, 17},   {31, 95},   {63, 63},   {64, 64},  {65, 65},   {0, 70},
    {127, 127}, {128, 128}, {129, 129}, {64, 192},  {65, 193}, {20, 1000}, {1, 300},
    {130, 513}, {200, 200}, {33, 129},  {128, 256}, {40, 41},  {300, 900}, {18, 64}};

double RelativeRms(const std::vector<float>& got, const std::vector<float>& want) {
  double delta = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    delta += std::pow(1.0 * got[i] - want[i], 2);
    norm += std::pow(1.0 * want[i], 2);
  }
  return std::sqrt(delta / norm);
}

// Precise, and an e4m3 cache with e4m3 products too.
void ExpectPrefillAgrees(const AttentionShape& shape, const std::vector<SequenceShape>& seqs) {
  SCOPED_TRACE(Print(shape));
  Random random(11);
  AttentionInputs inputs(random, shape, seqs);
  for (float& x : inputs.q) x /= 2;
  inputs.q = Rounded(inputs.q, DType::kBF16);
  const std::vector<float> want = inputs.RunPaged();
  PagedAttentionParams p = inputs.Paged();
  EXPECT_TRUE(Close(DeviceAttention(inputs, DType::kBF16).Run(p), Doubles(want),
                    inputs.OutputShape(), ToleranceOf(shape, DType::kBF16)));
  if (shape.kv_dtype != DType::kF8E4M3) return;
  p.fp8_products = true;
  EXPECT_LE(RelativeRms(DeviceAttention(inputs, DType::kBF16).Run(p), want), kFp8ProductsError);
}

class PrefillAttention : public CudaTest {};

TEST_F(PrefillAttention, AgreesForEachCacheAndHeadRatio) {
  for (AttentionShape shape : kMmaShapes) {
    for (const auto& [num_heads, num_kv_heads] : kHeads) {
      shape.num_heads = num_heads;
      shape.num_kv_heads = num_kv_heads;
      ExpectPrefillAgrees(shape, kPrefills);
    }
  }
}

TEST_F(PrefillAttention, AgreesForLongSequences) {
  for (AttentionShape shape : kMmaShapes) {
    shape.num_heads = 8;
    ExpectPrefillAgrees(shape, {{700, 700}, {1, 333}, {300, 2000}, {129, 129}, {30, 3000}});
  }
}

TEST_F(PrefillAttention, AgreesForMoreTilesThanThreadBlocks) {
  for (AttentionShape shape : kMmaShapes) {
    shape.num_heads = 32;
    shape.num_kv_heads = 8;
    ExpectPrefillAgrees(shape, std::vector<SequenceShape>(40, {33, 100}));
  }
}

TEST_F(PrefillAttention, SeesOnlyTheSlidingWindow) {
  for (int window : {1, 2, 63, 64, 65, 127, 128, 129, 200, 1000}) {
    for (AttentionShape shape : kMmaShapes) {
      shape.sliding_window = window;
      ExpectPrefillAgrees(shape, kPrefills);
    }
  }
}

// Few keys weigh most, so that a lost one shows.
TEST_F(PrefillAttention, FindsTheKeyThatWeighsMost) {
  for (AttentionShape shape : kMmaShapes) {
    Random random(12);
    AttentionInputs inputs(random, shape, {{150, 700}, {400, 400}});
    for (float& x : inputs.q) x *= 3;
    inputs.q = Rounded(inputs.q, DType::kBF16);
    EXPECT_TRUE(Close(DeviceAttention(inputs, DType::kBF16).Run(inputs.Paged()),
                      Doubles(inputs.RunPaged()), inputs.OutputShape(),
                      ToleranceOf(shape, DType::kBF16)));
  }
}

// Tiles of keys begin at the same keys whatever the chunk.
TEST_F(PrefillAttention, GivesTheBitsOfOnePrefillInChunks) {
  constexpr int kNumTokens = 260, kQStride = (4 + 2 * 2) * 128;
  for (AttentionShape shape : kMmaShapes) {
    if (shape.head_dim != 128) continue;
    for (bool fp8_products : {false, true}) {
      for (int window : {0, 70}) {
        shape.sliding_window = window;
        Random random(3);
        const AttentionInputs whole(random, shape, {{kNumTokens, kNumTokens}});
        PagedAttentionParams p = whole.Paged();
        p.fp8_products = fp8_products;
        const auto want = DeviceAttention(whole, DType::kBF16).Run(p);
        for (int chunk : {13, 20, 52, 130}) {
          std::vector<float> got;
          for (int begin = 0; begin < kNumTokens; begin += chunk) {
            const int end = begin + chunk;
            AttentionInputs part = whole;
            part.q = {whole.q.begin() + begin * kQStride, whole.q.begin() + end * kQStride};
            part.cu_seqlens_q = {0, end - begin};
            part.seqlens_kv = {end};
            PagedAttentionParams part_p = part.Paged();
            part_p.fp8_products = fp8_products;
            const auto o = DeviceAttention(part, DType::kBF16).Run(part_p);
            got.insert(got.end(), o.begin(), o.end());
          }
          EXPECT_TRUE(SameBits(got, want, whole.OutputShape())) << Print(shape) << " by " << chunk;
        }
      }
    }
  }
}

}  // namespace
}  // namespace bough
