#include "kernels/gemm.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "kernels/cuda/gemm_config.h"
#include "tests/kernels_cuda/gemm_problem.h"

namespace bough {
namespace {

using cuda::GemmConfig;

std::string Describe(const GemmConfig& c) {
  return std::to_string(c.tile_n) + " outputs x " + std::to_string(c.tile_m) + " tokens, cluster " +
         std::to_string(c.cluster) + (c.split_k ? ", split k" : "");
}

class TiledGemm : public CudaTest {
 protected:
  // Twice: the second launch finds what the first left.
  void ExpectRight(const GemmConfig& config, const Problem& problem) {
    SCOPED_TRACE(testing::Message()
                 << Describe(config) << ": " << testing::PrintToString(problem.rows_per_expert)
                 << " x " << problem.n << " x " << problem.k << " " << Name(problem.dtype) << " -> "
                 << Name(problem.out_dtype));
    Product product(random_, problem);
    for (int i = 0; i < 2; ++i) {
      product.PoisonY();
      cuda::TiledGemm(product.Params(), config, nullptr);
      product.ExpectRight();
    }
  }

  // Every tile, with each kind of schedule and of element.
  void ForEachTile(const std::function<void(GemmConfig, Problem)>& run) {
    for (GemmConfig config : cuda::kGemmTiles) {
      for (bool split_k : {true, false}) {
        config.split_k = split_k;
        for (DType dtype : {DType::kF8E4M3, DType::kBF16}) {
          for (DType out : {DType::kBF16, DType::kF32}) {
            run(config, {.rows_per_expert = {}, .n = 0, .k = 0, .dtype = dtype, .out_dtype = out});
            if (HasFailure()) return;  // one report is enough to start with
          }
        }
      }
    }
  }

  Random random_{7};
};

// Elements in that many bytes of a row.
int ElementsIn(int num_bytes, DType dtype) { return num_bytes / static_cast<int>(SizeOf(dtype)); }

TEST_F(TiledGemm, IsExactAroundTheTilesEdges) {
  ForEachTile([&](const GemmConfig& c, Problem p) {
    const struct {
      int rows, n, row_bytes;
    } shapes[] = {{1, 8, 16},
                  {c.tile_m - 1, c.tile_n - 8, 128},
                  {c.tile_m, c.tile_n, 1040},
                  {c.tile_m + 1, c.tile_n * c.cluster + 8, 272},
                  {2 * c.tile_m + 3, 24, 12288}};  // enough of k to split
    for (const auto& s : shapes) {
      p.rows_per_expert = {s.rows};
      p.n = s.n;
      p.k = ElementsIn(s.row_bytes, p.dtype);
      ExpectRight(c, p);
    }
  });
}

TEST_F(TiledGemm, IsExactForUnevenExpertsAndLeavesSpareRowsAlone) {
  ForEachTile([&](const GemmConfig& c, Problem p) {
    p.rows_per_expert = {0, c.tile_m + 1, 0, 1, c.tile_m / 2 + 3, 0};
    p.num_spare_rows = 5;
    p.n = c.tile_n + 8;
    p.k = ElementsIn(640, p.dtype);
    ExpectRight(c, p);
    p.rows_per_expert.assign(64, 0);  // all rows in the last of as many experts as may be
    p.rows_per_expert.back() = c.tile_m;
    p.n = 16;
    ExpectRight(c, p);
    p.rows_per_expert.assign(3, 0);  // none at all
    ExpectRight(c, p);
  });
}

class Gemm : public CudaTest {};

TEST_F(Gemm, IsExactForTheShapesOfAModel) {
  Random random(1);
  for (DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    for (int m : {1, 7, 16, 33, 64, 130, 300}) {
      for (DType out_dtype : {DType::kBF16, DType::kF32}) {
        SCOPED_TRACE(testing::Message() << m << " rows of " << Name(dtype));
        Product product(random, {{m}, 1536, 1024, 0, dtype, out_dtype});
        cuda::Gemm(product.DenseParams(), nullptr);
        product.ExpectRight();
      }
    }
  }
}

TEST_F(Gemm, IsExactForShapesThatFitNoTile) {
  Random random(2);
  const struct {
    int m, n, k;
  } shapes[] = {{1, 1, 1}, {1, 8, 7}, {3, 5, 33}, {63, 65, 31}, {65, 63, 40}, {130, 70, 96}};
  for (const auto& s : shapes) {
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(testing::Message() << s.m << "x" << s.n << "x" << s.k << " " << Name(dtype));
      Product product(random, {{s.m}, s.n, s.k, 0, dtype, DType::kF32});
      cuda::Gemm(product.DenseParams(), nullptr);
      product.ExpectRight();
      Product grouped(random, {{0, s.m, 0, 3}, s.n, s.k, 2, dtype, dtype});
      cuda::GroupedGemm(grouped.Params(), nullptr);
      grouped.ExpectRight();
    }
  }
}

TEST_F(Gemm, DoesNothingForNoRows) {
  cuda::Gemm({.m = 0, .n = 8, .k = 16}, nullptr);
  cuda::GroupedGemm({.num_experts = 2, .num_rows = 0, .n = 8, .k = 16}, nullptr);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

TEST_F(Gemm, IsExactWhenReplayedInAGraph) {
  Random random(3);
  Product first(random, {{5}, 6144, 1024}), second(random, {{0, 9, 2, 40}, 512, 768});
  GroupedGemmParams p = second.Params();
  p.workspace = first.Params().workspace;  // as a model does: one after the other
  cudaStream_t stream;
  CUDA_CHECK(cudaStreamCreate(&stream));
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < 3; ++i) {
    cuda::Gemm(first.DenseParams(), stream);
    cuda::GroupedGemm(p, stream);
  }
  cudaGraph_t graph;
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t exec;
  CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  for (int i = 0; i < 3; ++i) {
    first.PoisonY();
    second.PoisonY();
    CUDA_CHECK(cudaGraphLaunch(exec, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
    first.ExpectRight();
    second.ExpectRight();
  }
  CUDA_CHECK(cudaGraphExecDestroy(exec));
  CUDA_CHECK(cudaGraphDestroy(graph));
  CUDA_CHECK(cudaStreamDestroy(stream));
}

// Weights may be fetched early, tokens may not: the second product's are the first one's y. Both are
// put on the stream many times, so that they overlap in every way.
TEST_F(Gemm, ReadsTokensOnlyAfterTheKernelBefore) {
  constexpr int kRepeats = 20;
  Random random(6);
  const Problem up = {{3, 0, 9, 20}, 1024, 64, 0, DType::kBF16, DType::kBF16};
  for (bool offsets_known : {false, true}) {
    Product first(random, up),
        second(random, {up.rows_per_expert, 512, up.n, 0, DType::kBF16, DType::kF32});
    second.TakeTokensFrom(first);
    GroupedGemmParams p = second.Params();
    p.x = first.Params().y;
    p.offsets_known = offsets_known;
    for (int i = 0; i < kRepeats; ++i) {
      first.PoisonY();
      second.PoisonY();
      cuda::GroupedGemm(first.Params(), nullptr);
      cuda::GroupedGemm(p, nullptr);
      second.ExpectRight();
    }
  }
}

// Random outputs of full-size products; the weights are made by a fast generator.
TEST_F(Gemm, IsExactAtMixtralsFullSize) {
  constexpr int kNumExperts = 8;
  const struct { int n, k; } shapes[] = {{28672, 4096}, {4096, 14336}};
  std::vector<uint8_t> integers;
  for (int i = 0; i < 256; ++i) {
    integers.push_back(Encoded({static_cast<float>(i % 5 - 2)}, DType::kF8E4M3)[0]);
  }
  std::vector<uint8_t> w(int64_t{kNumExperts} * 28672 * 4096);
  uint64_t state = 1;
  for (uint8_t& byte : w) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    byte = integers[state >> 56];
  }
  const DeviceBytes device_w(w);
  const Workspace workspace;
  Random random(4);
  const auto value = [](uint8_t byte) -> float {
    return __half2float(__half(__nv_cvt_fp8_to_halfraw(byte, __NV_E4M3)));
  };
  for (const auto& shape : shapes) {
    const std::vector<float> w_scale = RandomScales(random, kNumExperts * shape.n);
    const DeviceBytes device_w_scale(w_scale);
    for (int num_tokens : {1, 16, 64, 200, 600, 2000}) {
      SCOPED_TRACE(testing::Message() << num_tokens << " tokens, k " << shape.k);
      // Each token takes two experts.
      std::vector<int32_t> offsets(kNumExperts + 1);
      for (int t = 0; t < num_tokens; ++t) {
        const int first = RandomInt(random, 0, 7), second = (first + RandomInt(random, 1, 7)) % 8;
        ++offsets[first + 1];
        ++offsets[second + 1];
      }
      std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
      const int num_rows = 2 * num_tokens;
      const std::vector<float> x = RandomIntegers(random, int64_t{num_rows} * shape.k);
      const std::vector<float> x_scale = RandomScales(random, num_rows);
      const DeviceBytes device_x(Encoded(x, DType::kF8E4M3)), device_x_scale(x_scale),
          device_offsets(offsets), y(std::vector<uint8_t>(int64_t{num_rows} * shape.n * 2, 0xff));
      cuda::GroupedGemm({.x = device_x.as<void>(),
                         .x_scale = device_x_scale.as<float>(),
                         .w = device_w.as<void>(),
                         .w_scale = device_w_scale.as<float>(),
                         .expert_offsets = device_offsets.as<int32_t>(),
                         .y = y.as<void>(),
                         .workspace = workspace.data(),
                         .num_experts = kNumExperts,
                         .num_rows = num_rows,
                         .n = shape.n,
                         .k = shape.k,
                         .dtype = DType::kF8E4M3,
                         .w_dtype = DType::kF8E4M3,
                         .out_dtype = DType::kBF16},
                        nullptr);
      const std::vector<float> got = Decoded(y.Download<uint8_t>(), DType::kBF16);
      for (int sample = 0; sample < 1000; ++sample) {
        const int row = RandomInt(random, 0, num_rows - 1), n = RandomInt(random, 0, shape.n - 1);
        const int64_t expert =
            std::upper_bound(offsets.begin(), offsets.end(), row) - offsets.begin() - 1;
        float sum = 0;
        for (int k = 0; k < shape.k; ++k) {
          sum += x[int64_t{row} * shape.k + k] * value(w[(expert * shape.n + n) * shape.k + k]);
        }
        const float want = sum * x_scale[row] * w_scale[expert * shape.n + n];
        ASSERT_EQ(got[int64_t{row} * shape.n + n], BF16ToFloat(FloatToBF16(want)))
            << "at [" << row << ", " << n << "] of expert " << expert;
      }
    }
  }
}

// Elements of all sizes: the tensor core sums e4m3 products with about 14 bits.
TEST_F(Gemm, LosesLittleWhenSumsAreNotExact) {
  constexpr int kM = 24, kN = 256, kK = 14336;
  constexpr float kLargestError = 0.01f;  // of the outputs' spread; a lost k-block would be 0.1
  Random random(5);
  const auto floats = [&](int64_t size) {  // at most 4 significant bits, so exact in e4m3
    std::vector<float> values(size);
    for (float& v : values) v = std::ldexp(RandomInt(random, -15, 15), RandomInt(random, -5, 0));
    return values;
  };
  const std::vector<float> x = floats(kM * kK), w = floats(kN * kK);
  const DeviceBytes ones(std::vector<float>(kN, 1.0f));
  const Workspace workspace;
  const DeviceBytes e4m3_x(Encoded(x, DType::kF8E4M3)), e4m3_w(Encoded(w, DType::kF8E4M3)),
      bf16_x(Encoded(x, DType::kBF16)), bf16_w(Encoded(w, DType::kBF16));
  std::vector<double> want(kM * kN);
  ParallelFor(kM * kN, [&](int64_t i) {
    for (int k = 0; k < kK; ++k) want[i] += double{x[i / kN * kK + k]} * w[i % kN * kK + k];
  });
  for (const GemmConfig& config : {GemmConfig{128, 32}, GemmConfig{256, 128}}) {
    for (DType dtype : {DType::kF8E4M3, DType::kBF16}) {
      const bool e4m3 = dtype == DType::kF8E4M3;
      const DeviceTensor y(std::vector<float>(kM * kN, NAN), DType::kF32);
      cuda::TiledGemm({.x = (e4m3 ? e4m3_x : bf16_x).as<void>(),
                       .x_scale = e4m3 ? ones.as<float>() : nullptr,
                       .w = (e4m3 ? e4m3_w : bf16_w).as<void>(),
                       .w_scale = e4m3 ? ones.as<float>() : nullptr,
                       .expert_offsets = nullptr,
                       .y = y.data(),
                       .workspace = workspace.data(),
                       .num_experts = 1,
                       .num_rows = kM,
                       .n = kN,
                       .k = kK,
                       .dtype = dtype,
                       .w_dtype = dtype},
                      config, nullptr);
      const std::vector<float> got = y.Floats();
      double error = 0, spread = 0;
      for (int i = 0; i < kM * kN; ++i) {
        error += (got[i] - want[i]) * (got[i] - want[i]);
        spread += want[i] * want[i];
      }
      const double relative = std::sqrt(error / spread);
      EXPECT_LT(relative, kLargestError) << Describe(config) << " of " << Name(dtype);
      RecordProperty(std::string(Name(dtype)) + " by " + std::to_string(config.tile_m),
                     std::to_string(relative));
    }
  }
}

TEST(GemmDeathTest, RefusesDTypesByName) {
  EXPECT_DEATH(cuda::Gemm({.m = 1, .n = 1, .k = 1, .w_dtype = DType::kF8E4M3}, nullptr),
               "f32 x f8_e4m3 -> f32, CUDA takes");
  EXPECT_DEATH(cuda::GroupedGemm({.num_rows = 1, .n = 1, .k = 1, .w_dtype = DType::kBF16}, nullptr),
               "f32 x bf16 -> f32, CUDA takes");
}

// H200 has 132 SMs.
TEST(PickConfig, GivesDecodeTilesAsNarrowAsItsTokens) {
  const auto dense = [](int m) { return cuda::PickConfig(m, 1, 28672, 4096, 132); };
  EXPECT_EQ(dense(1), (GemmConfig{64, 8, 1, false}));
  EXPECT_EQ(dense(8), (GemmConfig{64, 8, 1, false}));
  EXPECT_EQ(dense(9), (GemmConfig{64, 16, 1, false}));
  EXPECT_EQ(dense(64), (GemmConfig{128, 64}));
  const auto grouped = [](int num_tokens) {
    return cuda::PickConfig(2 * num_tokens, 8, 28672, 4096, 132);
  };
  EXPECT_EQ(grouped(1), (GemmConfig{64, 8}));
  EXPECT_EQ(grouped(64), (GemmConfig{128, 32}));  // 16 rows an expert, at times more
  EXPECT_EQ(grouped(8192), (GemmConfig{256, 128}));
  EXPECT_EQ(dense(8192), (GemmConfig{256, 128}));
}

TEST(PickConfig, SplitsNarrowProductsOnlyWhereRowsAreLong) {
  const auto dense = [](int m, int n, int64_t row_bytes) {
    return cuda::PickConfig(m, 1, n, row_bytes, 132);
  };
  EXPECT_EQ(dense(1, 4096, 14336), (GemmConfig{128, 32}));
  EXPECT_EQ(dense(1, 12288, 4096), (GemmConfig{128, 32, 1, false}));  // 96 tiles
  EXPECT_EQ(dense(64, 4096, 4096), (GemmConfig{128, 32, 1, false}));  // twice 32
  EXPECT_EQ(dense(128, 4096, 4096), (GemmConfig{128, 64, 1, false}));
}

TEST(PickConfig, TakesSmallTilesWhenLargeOnesLeaveSmsIdle) {
  EXPECT_EQ(cuda::PickConfig(1024, 1, 4096, 4096, 132), (GemmConfig{256, 128}));    // 128 tiles
  EXPECT_EQ(cuda::PickConfig(512, 1, 4096, 4096, 132), (GemmConfig{128, 128, 2}));  // 64, or 128
}

TEST(PickConfig, TakesOnlyTilesThatAreCompiled) {
  for (int rows = 1; rows < 40000; rows += 1 + rows / 3) {
    for (int experts : {1, 2, 8, 64}) {
      for (int n : {8, 4096, 28672}) {
        GemmConfig config = cuda::PickConfig(rows, experts, n, 4096, 132);
        config.split_k = true;
        EXPECT_EQ(std::count(std::begin(cuda::kGemmTiles), std::end(cuda::kGemmTiles), config), 1);
      }
    }
  }
}

}  // namespace
}  // namespace bough
