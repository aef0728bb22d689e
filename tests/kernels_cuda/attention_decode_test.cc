#include "tests/kernels_cuda/device_attention.h"

namespace bough {
namespace {

class DecodeAttention : public CudaTest {};

// Decode rows of which each has its own keys behind those of the nodes around it.
ForestShape Forest(const std::vector<int>& own_lens, const std::vector<SharedNode>& nodes,
                   int num_q = 1) {
  ForestShape forest = {{}, nodes};
  for (int own : own_lens) forest.seqs.push_back({num_q, own + num_q - 1});
  for (const SharedNode& node : nodes) {
    for (int s = node.seq_begin; s < node.seq_end; ++s) {
      forest.seqs[s].seqlen_kv += node.key_end - node.key_begin;
    }
  }
  return forest;
}

TEST_F(DecodeAttention, DecodesForEachCacheAndHeadRatio) {
  for (AttentionShape shape : kMmaShapes) {
    for (const auto& [num_heads, num_kv_heads] : kHeads) {
      shape.num_heads = num_heads;
      shape.num_kv_heads = num_kv_heads;
      ExpectPagedAgrees(shape, kDecodeShapes, DType::kBF16);
    }
  }
}

TEST_F(DecodeAttention, DecodesLongSequencesInManyParts) {
  for (AttentionShape shape : kMmaShapes) {
    shape.num_heads = 8;
    ExpectPagedAgrees(shape, {{1, 16001}}, DType::kBF16, 3);
    ExpectPagedAgrees(shape, {{1, 5}, {1, 64}, {1, 9000}, {1, 1}, {1, 700}}, DType::kBF16, 3);
  }
}

TEST_F(DecodeAttention, DecodesMoreSequencesThanThreadBlocks) {
  std::vector<SequenceShape> seqs;
  for (int s = 0; s < 500; ++s) seqs.push_back({1, s * 7 % 150});
  for (AttentionShape shape : kMmaShapes) {
    shape.num_heads = 16;
    shape.num_kv_heads = 4;
    ExpectPagedAgrees(shape, seqs, DType::kBF16);
  }
}

// The same graph, plan included, serves other lengths, padding rows among them, and gives the same bits
// each time.
TEST_F(DecodeAttention, ReplaysAGraphWithOtherLengths) {
  Random random(7);
  const AttentionShape shape = {.num_heads = 8,
                                .num_kv_heads = 2,
                                .kv_dtype = DType::kF8E4M3,
                                .kv_scales = true,
                                .unused = 300};
  AttentionInputs inputs(random, shape, {{1, 3000}, {1, 100}, {1, 640}, {1, 1}});
  inputs.q = Rounded(inputs.q, DType::kBF16);
  DeviceAttention device(inputs, DType::kBF16);
  PagedAttentionParams p = inputs.Paged();
  device.Point(p);

  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CUDA_CHECK(cudaStreamCreate(&stream));
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  cuda::PlanAttention(p, stream);
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

TEST_F(DecodeAttention, TakesAFewQueriesOfASequence) {
  const std::vector<SequenceShape> seqs = {{4, 4}, {1, 1}, {3, 65}, {4, 67}, {4, 64}, {2, 900}};
  for (AttentionShape shape : kMmaShapes) {
    for (int window : {0, 3, 70}) {
      shape.sliding_window = window;
      shape.num_heads = 8;
      ExpectPagedAgrees(shape, seqs, DType::kBF16);
    }
  }
}

TEST_F(DecodeAttention, SeesOnlyTheSlidingWindow) {
  for (int window : {1, 2, 31, 32, 33, 64, 65, 1000}) {
    for (AttentionShape shape : kMmaShapes) {
      shape.sliding_window = window;
      ExpectPagedAgrees(shape, kDecodeShapes, DType::kBF16);
    }
  }
}

class SharedAttention : public CudaTest {};

TEST_F(SharedAttention, MatchesPlainForEachCacheAndHeadRatio) {
  const ForestShape forest = Forest({1, 64, 65, 200, 7, 3}, {{0, 5, 0, 192}, {1, 3, 192, 320}});
  for (AttentionShape shape : kMmaShapes) {
    for (const auto& [num_heads, num_kv_heads] : kHeads) {
      shape.num_heads = num_heads;
      shape.num_kv_heads = num_kv_heads;
      ExpectAttentionAgrees(shape, forest, DType::kBF16);
    }
  }
}

TEST_F(SharedAttention, TakesNodesOfAnySize) {
  std::vector<int> own;
  for (int row = 0; row < 1 + 3 + 4 + 5 + 17 + 70; ++row) own.push_back(1 + row * 13 % 140);
  const ForestShape forest = Forest(own, {{0, 1, 0, 64},
                                          {1, 4, 0, 320},
                                          {8, 13, 0, 128},
                                          {13, 13, 0, 0},
                                          {13, 30, 0, 64},
                                          {30, 100, 0, 256},
                                          {30, 99, 256, 320},
                                          {31, 70, 320, 448},
                                          {40, 43, 448, 512}});
  for (AttentionShape shape : kMmaShapes) {
    for (const auto& [num_heads, num_kv_heads] : {std::pair{8, 2}, {4, 4}, {6, 2}, {16, 1}}) {
      shape.num_heads = num_heads;
      shape.num_kv_heads = num_kv_heads;
      ExpectAttentionAgrees(shape, forest, DType::kBF16);
    }
  }
}

TEST_F(SharedAttention, TakesALongNode) {
  const ForestShape forest =
      Forest({1, 100, 64, 1, 7, 33, 900, 1, 2}, {{0, 2, 0, 8192}, {2, 9, 0, 6400}});
  for (AttentionShape shape : kMmaShapes) {
    shape.num_heads = 16;
    ExpectAttentionAgrees(shape, forest, DType::kBF16, 3);
  }
}

TEST_F(SharedAttention, SeesOnlyTheSlidingWindow) {
  std::vector<int> own;
  for (int row = 0; row < 40; ++row) own.push_back(1 + row * 13 % 140);
  for (int num_q : {1, 2}) {
    const ForestShape forest =
        Forest(own, {{0, 40, 0, 128}, {0, 3, 128, 192}, {3, 40, 128, 320}}, num_q);
    for (AttentionShape shape : kMmaShapes) {
      for (int window : {1, 64, 100, 300}) {
        shape.sliding_window = window;
        ExpectAttentionAgrees(shape, forest, DType::kBF16);
      }
    }
  }
}

TEST_F(SharedAttention, MatchesPlainOnThePlainKernel) {
  for (DType kv_dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    ExpectAttentionAgrees({.kv_dtype = kv_dtype, .kv_scales = true},
                          Forest({1, 64, 65, 200, 7}, {{0, 5, 0, 192}, {2, 4, 192, 256}}),
                          DType::kF32);
  }
  ExpectAttentionAgrees({.num_heads = 6, .block_size = 48},
                        Forest(std::vector<int>(30, 5), {{0, 20, 0, 96}, {21, 30, 0, 48}}),
                        DType::kF32);
}

}  // namespace
}  // namespace bough
