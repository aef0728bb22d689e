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
  std::vector<float> LogitsOf(const OneRankOptions& options, int shared_tokens = 0,
                              int max_chunk = 512) const {
    auto model = OneRank::Load(options);
    CHECK_OK(model.status());
    std::vector<float> all;
    LeadAlong(prompts_, answers_, shared_tokens, max_chunk,
              [&](const Batch& batch, const std::vector<int>& rows) {
                const std::vector<float> logits = (*model)->Logits(batch);
                if (!rows.empty()) all.insert(all.end(), logits.begin(), logits.end());
              });
    return all;
  }

  // The same `num_tokens` tokens go before every prompt.
  void ShareBeginning(int num_tokens) {
    TokenIds text;
    for (const TokenIds& prompt : golden_.logits_prompts) {
      text.insert(text.end(), prompt.begin(), prompt.end());
    }
    CHECK_GE(static_cast<int>(text.size()), num_tokens);
    text.resize(num_tokens);
    for (TokenIds& prompt : prompts_) prompt.insert(prompt.begin(), text.begin(), text.end());
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
  ShareBeginning(128);
  const OneRankOptions options = Options("cuda");
  EXPECT_LE(RelativeRms(LogitsOf(options, 0, 37), LogitsOf(options, 0, 512)), kBF16Tolerance);
}

TEST_F(CudaDecoder, BifurcatedAttentionIsNearPlainAttention) {
  ShareBeginning(128);
  OneRankOptions options = Options("cuda");
  const std::vector<float> bifurcated = LogitsOf(options, 128);
  EXPECT_LE(RelativeRms(bifurcated, LogitsOf(options, 0)), kBF16Tolerance);
  options.attention.enable_bifurcated = false;
  EXPECT_LE(RelativeRms(bifurcated, LogitsOf(options, 128)), kBF16Tolerance);
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
