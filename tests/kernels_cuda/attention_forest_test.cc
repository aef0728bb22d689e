// Attention over random forests of shared nodes: the GPU with nodes beside the GPU without and the
// CPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>

#include "tests/kernels_cuda/device_attention.h"

namespace bough {
namespace {

// bf16 answers below 4. Weights and e4m3 K and V are multiplied in f16, bf16 K and V in bf16, whose
// roundings of 2^-9 a weighted mean of |v| <= 2 takes over, times a v_scale of up to 2.
constexpr Tolerance kTolerance = {.abs = 1.6e-2, .rel = 1.0 / 128};
// e4m3 q and weights keep four bits; relative RMS of a whole answer. Of normal q it is below 4e-2
// (bench-kernels-attention); here fewer keys weigh more.
constexpr double kFp8ProductsError = 6e-2;

AttentionShape RandomShape(Random& random) {
  constexpr std::pair<int, int> kHeads[] = {{4, 4}, {8, 2}, {8, 1}, {6, 2}, {16, 4}};
  AttentionShape shape;
  std::tie(shape.num_heads, shape.num_kv_heads) = kHeads[RandomInt(random, 0, 4)];
  shape.head_dim = RandomInt(random, 0, 3) == 0 ? 64 : 128;
  shape.kv_dtype = RandomInt(random, 0, 1) == 0 ? DType::kBF16 : DType::kF8E4M3;
  shape.sliding_window = RandomInt(random, 0, 2) == 0 ? RandomInt(random, 1, 400) : 0;
  shape.kv_scales = RandomInt(random, 0, 1);
  shape.unused = 200;  // would show
  return shape;
}

// bf16 queries of which few keys weigh most, so that a lost one shows.
AttentionInputs MakeInputs(Random& random, const AttentionShape& shape, const ForestShape& forest) {
  AttentionInputs inputs(random, shape, forest);
  for (float& x : inputs.q) x *= 2;
  inputs.q = RoundToBF16(inputs.q);
  return inputs;
}

double RelativeRms(const std::vector<float>& got, const std::vector<float>& want) {
  double delta = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    delta += (1.0 * got[i] - want[i]) * (1.0 * got[i] - want[i]);
    norm += 1.0 * want[i] * want[i];
  }
  return norm == 0 ? 0 : std::sqrt(delta / norm);
}

// With nodes and without them, precise and with e4m3 products.
void ExpectAgrees(Random& random, const ForestLimits& limits) {
  const AttentionShape shape = RandomShape(random);
  SCOPED_TRACE(Print(shape));
  AttentionInputs inputs = MakeInputs(random, shape, RandomForest(random, limits));
  const std::vector<float> reference = inputs.RunPlain();
  const std::vector<double> want = Doubles(reference);
  PagedAttentionParams p = inputs.Paged();
  SCOPED_TRACE(testing::Message() << p.num_nodes << " nodes, " << p.num_seqs << " sequences");
  PagedAttentionParams plain = p;
  plain.num_nodes = 0;
  EXPECT_TRUE(Close(DeviceAttention(inputs, DType::kBF16).Run(plain), want, inputs.OutputShape(),
                    kTolerance));
  inputs.HideSharedBlocks();
  DeviceAttention shared(inputs, DType::kBF16);
  EXPECT_TRUE(Close(shared.Run(p), want, inputs.OutputShape(), kTolerance));
  if (shape.kv_dtype == DType::kF8E4M3) {
    p.fp8_products = true;
    EXPECT_LE(RelativeRms(shared.Run(p), reference), kFp8ProductsError);
  }
}

class SharedNodes : public CudaTest {};

TEST_F(SharedNodes, AgreeWithPlainAttentionInRandomDecodeSteps) {
  for (int seed = 0; seed < 700 && !HasFailure(); ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Random random(seed);
    ExpectAgrees(random, {.max_seqs = 12});
  }
}

TEST_F(SharedNodes, AgreeWithPlainAttentionForSeveralQueriesASequence) {
  for (int seed = 0; seed < 270 && !HasFailure(); ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Random random(1000 + seed);
    ExpectAgrees(random, {.max_seqs = 10, .max_q = seed % 2 == 0 ? 4 : 150});
  }
}

TEST_F(SharedNodes, AgreeWithPlainAttentionInLargeBatches) {
  for (int seed = 0; seed < 30 && !HasFailure(); ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Random random(2000 + seed);
    ExpectAgrees(random, {.max_seqs = 80, .max_node_blocks = 10, .max_own_keys = 150});
  }
}

// Plan and attention, recorded once, serve every forest that is written where the graph reads.
TEST_F(SharedNodes, OneGraphServesForestsOfItsSize) {
  constexpr int kNumSeqs = 16;
  const AttentionShape shape = {.num_heads = 8, .kv_dtype = DType::kF8E4M3, .unused = 200};
  Random random(3);
  // The same sequences and blocks in every forest; what is declared shared differs.
  ForestShape forest = {.seqs = std::vector<SequenceShape>(kNumSeqs, {1, 300}),
                        .nodes = {{0, 16, 0, 128}, {0, 8, 128, 256}, {8, 16, 128, 256}}};
  const AttentionInputs inputs = MakeInputs(random, shape, forest);
  const std::vector<double> want = Doubles(inputs.RunPlain());
  const std::vector<SharedNode> kForests[] = {
      {{0, 16, 0, 128}, {0, 8, 128, 256}, {8, 16, 128, 256}},
      {{0, 16, 0, 64}, {16, 16, 0, 0}, {16, 16, 0, 0}},
      {{16, 16, 0, 0}, {16, 16, 0, 0}, {16, 16, 0, 0}},
      {{2, 7, 0, 256}, {9, 12, 0, 128}, {9, 12, 128, 192}}};

  DeviceAttention batch(inputs, DType::kBF16);
  PagedAttentionParams p = inputs.Paged();
  batch.Point(p);
  cudaStream_t stream;
  CUDA_CHECK(cudaStreamCreate(&stream));
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  cuda::PlanAttention(p, stream);
  cuda::PagedAttention(p, stream);
  cuda::PagedAttention(p, stream);  // the next layer
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  for (const std::vector<SharedNode>& nodes : kForests) {
    std::vector<int32_t> own_begin(kNumSeqs, 0);
    for (const SharedNode& node : nodes) {
      std::fill(own_begin.begin() + node.seq_begin, own_begin.begin() + node.seq_end, node.key_end);
    }
    const auto upload = [](const auto& from, const void* to) {
      CUDA_CHECK(cudaMemcpy(const_cast<void*>(to), from.data(), from.size() * sizeof(from[0]),
                            cudaMemcpyHostToDevice));
    };
    upload(nodes, p.nodes);
    upload(own_begin, p.own_begin);
    CUDA_CHECK(cudaMemset(p.o, 0xff, want.size() * 2));
    for (int replay = 0; replay < 3; ++replay) CUDA_CHECK(cudaGraphLaunch(exec, stream));
    EXPECT_TRUE(Close(batch.Output(), want, inputs.OutputShape(), kTolerance));
  }
  CUDA_CHECK(cudaGraphExecDestroy(exec));
  CUDA_CHECK(cudaGraphDestroy(graph));
  CUDA_CHECK(cudaStreamDestroy(stream));
}

// The order of a merge does not depend on who comes last.
TEST_F(SharedNodes, GiveTheSameBitsEveryTime) {
  for (int seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Random random(4000 + seed);
    const AttentionInputs inputs = MakeInputs(
        random, RandomShape(random), RandomForest(random, {.max_seqs = 60, .max_node_blocks = 20}));
    DeviceAttention batch(inputs, DType::kBF16);
    const std::vector<float> once = batch.Run(inputs.Paged());
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(SameBits(batch.Run(inputs.Paged()), once, inputs.OutputShape()));
    }
  }
}

}  // namespace
}  // namespace bough
