// The demo model on a GPU beside the same model on the CPU.
#include "worker/model/decoder.h"

#include <gtest/gtest.h>

#include "common/check.h"
#include "tests/worker_cuda/one_rank.h"
#include "tests/worker_cuda/teacher.h"

namespace bough {
namespace {

using namespace testing;

constexpr double kMinSameTokens = 0.99;
// bf16 keeps 8 bits; a few layers' roundings of 2^-9 add up to less than this share of the logits. FP8
// in the KV cache alone makes 0.013 of it.
constexpr double kBF16Tolerance = 0.008;
// A GPU's FP8 rounds other bf16 values than the CPU's f32, to errors of the same size.
constexpr double kFp8Slack = 1.25;
constexpr int kNumBlocks = 256;  // for all golden prompts, lengthened and answered

class CudaDecoder : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto device = OpenCudaDevice(0);
    if (!device.ok()) GTEST_SKIP() << device.status().message();
  }

  static OneRankOptions Options(const char* device) {
    return {.model_dir = kDemo, .device = device, .num_blocks = kNumBlocks};
  }

  // Logits of every position of the golden answers.
  std::vector<float> LogitsOf(const OneRankOptions& options,
                              const std::vector<SharedNode>& nodes = {},
                              int max_chunk = 512) const {
    auto model = OneRank::Load(options);
    CHECK_OK(model.status());
    std::vector<float> all;
    LeadAlong(prompts_, answers_, nodes, max_chunk,
              [&](const Batch& batch, const std::vector<int>& rows) {
                const std::vector<float> logits = (*model)->Logits(batch);
                if (!rows.empty()) all.insert(all.end(), logits.begin(), logits.end());
              });
    return all;
  }

  // Every fourth golden answer: enough for logits.
  static std::vector<TokenIds> Some(const std::vector<TokenIds>& all) {
    std::vector<TokenIds> some;
    for (size_t i = 0; i < all.size(); i += 4) some.push_back(all[i]);
    return some;
  }

  const DemoGolden golden_ = ReadDemoGolden();
  std::vector<TokenIds> prompts_ = Some(golden_.greedy_prompts);
  std::vector<TokenIds> answers_ = Some(golden_.greedy_tokens);
};

TEST_F(CudaDecoder, SaysTheGreedyTokensOfTheCpu) {
  auto model = OneRank::Load(Options("cuda"));
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_GE(ShareOfSameTokens(golden_.greedy_prompts, golden_.greedy_tokens, 512,
                              [&](const Batch& batch) { return (*model)->Greedy(batch); }),
            kMinSameTokens);
}

TEST_F(CudaDecoder, LogitsAreNearTheCpus) {
  EXPECT_LE(RelativeRms(LogitsOf(Options("cuda")), LogitsOf(Options("cpu"))), kBF16Tolerance);
}

TEST_F(CudaDecoder, ChunkedPrefillIsNearOneShot) {
  PrependText(golden_, 128, &prompts_);
  const OneRankOptions options = Options("cuda");
  EXPECT_LE(RelativeRms(LogitsOf(options, {}, 37), LogitsOf(options, {}, 512)), kBF16Tolerance);
}

TEST_F(CudaDecoder, SharedNodesAreNearPlainAttention) {
  PrependText(golden_, 320, &prompts_);
  const int num_seqs = static_cast<int>(prompts_.size());
  const std::vector<SharedNode> kForests[] = {
      {{0, num_seqs, 0, 128}},
      {{0, num_seqs, 0, 64}, {1, num_seqs, 64, 192}, {2, num_seqs, 192, 320}}};
  for (const bool fp8 : {false, true}) {
    OneRankOptions options = Options("cuda");
    options.fp8_kv_cache = fp8;
    const std::vector<float> plain = LogitsOf(options);
    for (const std::vector<SharedNode>& nodes : kForests) {
      SCOPED_TRACE(::testing::Message() << (fp8 ? "fp8, " : "bf16, ") << nodes.size() << " nodes");
      options.attention.enable_bifurcated = true;
      EXPECT_LE(RelativeRms(LogitsOf(options, nodes), plain), kBF16Tolerance);
      options.attention.enable_bifurcated = false;
      EXPECT_LE(RelativeRms(LogitsOf(options, nodes), plain), kBF16Tolerance);
    }
  }
}

// Decode rows that share nodes in one batch with a prompt's chunk.
TEST_F(CudaDecoder, OneStepOfDecodeRowsAndAChunkIsNearEachAlone) {
  PrependText(golden_, 192, &prompts_);
  const int num_decode = static_cast<int>(prompts_.size()) - 1;
  ASSERT_GE(num_decode, 2);
  const auto logits_of = [&](bool together) {
    HandBatches sequences(prompts_, 512);
    sequences.Share({{0, num_decode, 0, 192}});
    auto model = OneRank::Load(Options("cuda"));
    CHECK_OK(model.status());
    for (int seq = 0; seq < num_decode; ++seq) {
      (*model)->Logits(sequences.Prefill(seq, 512));
      sequences.Append(seq, answers_[seq][0]);
    }
    (*model)->Logits(sequences.Prefill(num_decode, 100));
    std::vector<float> logits;
    Batch batch = sequences.Decode(num_decode);
    if (!together) {
      logits = (*model)->Logits(batch);
      batch = Batch();
    }
    sequences.AddChunk(num_decode, 512, &batch);
    const std::vector<float> more = (*model)->Logits(batch);
    logits.insert(logits.end(), more.begin(), more.end());
    return logits;
  };
  EXPECT_LE(RelativeRms(logits_of(true), logits_of(false)), kBF16Tolerance);
}

// FP8 is as far from f32 on the GPU as on the CPU.
class CudaDecoderFp8 : public CudaDecoder,
                       public ::testing::WithParamInterface<std::pair<bool, bool>> {};
INSTANTIATE_TEST_SUITE_P(WeightsAndKvCache, CudaDecoderFp8,
                         ::testing::Values(std::pair(true, false), std::pair(false, true),
                                           std::pair(true, true)),
                         [](const auto& info) {
                           return std::string(info.param.first ? "Weights" : "") +
                                  (info.param.second ? "KvCache" : "");
                         });

TEST_P(CudaDecoderFp8, IsAsNearToF32AsOnTheCpu) {
  const std::vector<float> exact = LogitsOf(Options("cpu"));
  OneRankOptions on_cpu = Options("cpu"), on_gpu = Options("cuda");
  for (OneRankOptions* options : {&on_cpu, &on_gpu}) {
    std::tie(options->fp8_weights, options->fp8_kv_cache) = GetParam();
  }
  const double cpu_error = RelativeRms(LogitsOf(on_cpu), exact);
  const double gpu_error = RelativeRms(LogitsOf(on_gpu), exact);
  RecordProperty("cpu_error", std::to_string(cpu_error));
  RecordProperty("gpu_error", std::to_string(gpu_error));
  EXPECT_GT(cpu_error, 0);
  EXPECT_LE(gpu_error, kFp8Slack * cpu_error);
}

}  // namespace
}  // namespace bough
