// Logits and greedy tokens of the decoder against Hugging Face transformers.
#include "worker/model/decoder.h"

#include <gtest/gtest.h>

#include <cmath>

#include "common/check.h"
#include "kernels/ops.h"
#include "tests/worker_model/golden.h"
#include "tests/worker_model/hand_batch.h"
#include "worker/model/checkpoint.h"

namespace bough {
namespace {

using namespace testing;

// fp32 on both sides; what is left is the order of sums.
constexpr float kLogitsTolerance = 1e-3f;
constexpr int kMaxTokens = 512;

// A whole model on one rank.
class OneRank {
 public:
  OneRank(const std::string& model_dir, int num_blocks, bool bifurcated = true) {
    group_ = MpiGroup::Init(nullptr, nullptr);
    comm_ = MakeCpuCommunicator(group_.get());
    auto config = LoadModelConfig(model_dir);
    CHECK_OK(config.status());
    config_ = *config;
    const Shard shard = *MakeShard(config_, 1, 1, 0);
    auto source = Checkpoint::Open(model_dir);
    CHECK_OK(source.status());
    auto weights =
        LoadWeights(config_, shard, **source, false, device_.get(), [](int64_t, int64_t) {});
    CHECK_OK(weights.status());
    weights_ = *std::move(weights);
    cache_ = *KvCache::Allocate(config_, shard, DType::kF32, num_blocks, device_.get());
    decoder_.emplace(config_, shard, DecoderLimits{kMaxTokens, kMaxTokens},
                     AttentionOptions{.enable_bifurcated = bifurcated}, device_.get(), &weights_,
                     &cache_, comm_.get());
  }

  const ModelConfig& config() const { return config_; }
  const float* Forward(const Batch& batch) {
    return decoder_->Forward(BatchMemory(device_.get()).Upload(batch), nullptr);
  }

  // Argmax of each row of logits.
  StepResult Greedy(const Batch& batch) {
    const float* logits = Forward(batch);
    StepResult result;
    for (size_t row = 0; row < batch.logits_tokens.size(); ++row) {
      const float* first = logits + row * config_.vocab_size;
      result.tokens.push_back(std::max_element(first, first + config_.vocab_size) - first);
    }
    return result;
  }

 private:
  const std::unique_ptr<Device> device_ = MakeCpuDevice();
  std::unique_ptr<MpiGroup> group_;
  std::unique_ptr<Communicator> comm_;
  ModelConfig config_;
  Weights weights_;
  KvCache cache_;
  std::optional<Decoder> decoder_;
};

void ExpectNear(const float* got, const std::vector<float>& want) {
  float worst = 0;
  for (size_t i = 0; i < want.size(); ++i) worst = std::max(worst, std::abs(got[i] - want[i]));
  EXPECT_LE(worst, kLogitsTolerance);
}

std::vector<TokenIds> Prompts(const std::vector<TinyCase>& cases) {
  std::vector<TokenIds> prompts;
  for (const TinyCase& c : cases) prompts.push_back(c.prompt);
  return prompts;
}

std::vector<TokenIds> Greedy(const std::vector<TinyCase>& cases) {
  std::vector<TokenIds> greedy;
  for (const TinyCase& c : cases) greedy.push_back(c.greedy);
  return greedy;
}

class TinyModel : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(, TinyModel, ::testing::Values(kTinyMixtral, kTinyLlama, kTinyMistral),
                         [](const auto& model) {
                           return std::string(model.param).substr(sizeof("tests/golden/") - 1);
                         });

TEST_P(TinyModel, LogitsOfEveryPositionAgreeWithTransformers) {
  const auto cases = ReadTinyCases(GetParam());
  HandBatches sequences(Prompts(cases), 256);
  OneRank model(GetParam(), sequences.num_blocks());
  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(i);
    Batch batch = sequences.Prefill(static_cast<int>(i), kMaxTokens);
    batch.logits_tokens.clear();
    for (int t = 0; t < batch.num_tokens(); ++t) batch.logits_tokens.push_back(t);
    ASSERT_EQ(cases[i].logits.size(), cases[i].prompt.size() * model.config().vocab_size);
    ExpectNear(model.Forward(batch), cases[i].logits);
  }
}

TEST_P(TinyModel, GreedyTokensEqualTransformers) {
  const auto cases = ReadTinyCases(GetParam());
  HandBatches sequences(Prompts(cases), 256);
  OneRank model(GetParam(), sequences.num_blocks());
  EXPECT_EQ(GreedyTokens(&sequences, cases[0].greedy.size(), kMaxTokens,
                         [&](const Batch& batch) { return model.Greedy(batch); }),
            Greedy(cases));
}

TEST_P(TinyModel, ChunkedPrefillEqualsOneShotBitForBit) {
  const auto cases = ReadTinyCases(GetParam());
  const TokenIds& prompt = cases.back().prompt;
  const auto last_logits = [&](int max_chunk) {
    HandBatches sequence({prompt}, 256);
    OneRank model(GetParam(), sequence.num_blocks());
    const float* logits = nullptr;
    while (!sequence.IsPrefilled(0)) logits = model.Forward(sequence.Prefill(0, max_chunk));
    return std::vector<float>(logits, logits + model.config().vocab_size);
  };
  const std::vector<float> one_shot = last_logits(kMaxTokens);
  for (int max_chunk : {1, 7, 64, 100}) EXPECT_EQ(last_logits(max_chunk), one_shot) << max_chunk;
}

// Variations of the longest prompt behind its first two blocks.
std::vector<TokenIds> PromptsWithSharedPrefix(const TokenIds& prompt, int num_prompts) {
  std::vector<TokenIds> prompts(num_prompts, prompt);
  for (int i = 1; i < num_prompts; ++i) prompts[i].back() = 3 + i;
  return prompts;
}

TEST_P(TinyModel, BifurcatedAttentionGivesTheTokensOfPlainAttention) {
  const auto cases = ReadTinyCases(GetParam());
  const auto prompts = PromptsWithSharedPrefix(cases.back().prompt, 5);
  const auto greedy = [&](bool bifurcated, int shared_tokens) {
    HandBatches sequences(prompts, 256);
    sequences.SharePrefix(shared_tokens);
    OneRank model(GetParam(), sequences.num_blocks(), bifurcated);
    return GreedyTokens(&sequences, 32, kMaxTokens,
                        [&](const Batch& batch) { return model.Greedy(batch); });
  };
  const auto alone = greedy(false, 0);
  EXPECT_EQ(alone[0], cases.back().greedy);
  EXPECT_EQ(greedy(false, 128), alone);
  EXPECT_EQ(greedy(true, 128), alone);
}

// Decode rows, of which three share two blocks and two of these a third, and a prompt's chunk.
TEST_P(TinyModel, OneStepOfDecodeRowsAndAChunkGivesTheBitsOfEachAlone) {
  const auto cases = ReadTinyCases(GetParam());
  const auto logits_of = [&](bool bifurcated, bool together) {
    TokenIds prompt = cases.back().prompt;
    prompt.resize(200, 7);
    std::vector<TokenIds> prompts = PromptsWithSharedPrefix(prompt, 4);
    HandBatches sequences(prompts, 256);
    sequences.Share({{0, 3, 0, 128}, {1, 3, 128, 192}});
    OneRank model(GetParam(), sequences.num_blocks(), bifurcated);
    for (int seq = 0; seq < 3; ++seq) {
      model.Forward(sequences.Prefill(seq, kMaxTokens));
      sequences.Append(seq, 5);
    }
    model.Forward(sequences.Prefill(3, 150));
    std::vector<float> logits;
    const auto run = [&](const Batch& batch) {
      const float* rows = model.Forward(batch);
      logits.insert(logits.end(), rows,
                    rows + batch.logits_tokens.size() * model.config().vocab_size);
    };
    Batch batch = sequences.Decode(3);
    EXPECT_EQ(batch.nodes.size(), 2u);
    if (!together) {
      run(batch);
      batch = Batch();
    }
    sequences.AddChunk(3, kMaxTokens, &batch);
    run(batch);
    return logits;
  };
  const std::vector<float> alone = logits_of(false, false);
  EXPECT_EQ(alone.size() % 4, 0u);
  EXPECT_EQ(logits_of(true, false), alone);
  EXPECT_EQ(logits_of(false, true), alone);
  EXPECT_EQ(logits_of(true, true), alone);
}

TEST(Decoder, CopiesBlocksBeforeTheStepReadsThem) {
  const auto cases = ReadTinyCases(kTinyLlama);
  HandBatches sequences({cases[2].prompt, cases[2].prompt},
                        128);  // 70 tokens: blocks {3, 2}, {1, 0}
  OneRank model(kTinyLlama, sequences.num_blocks());
  const int32_t token = model.Greedy(sequences.Prefill(0, kMaxTokens)).tokens[0];
  sequences.Prefill(1, kMaxTokens);  // not run: its blocks are copied instead
  sequences.Append(0, token);
  sequences.Append(1, token);
  Batch batch = sequences.Decode();
  batch.copy_src = {3, 2};
  batch.copy_dst = {1, 0};
  const std::vector<int32_t> tokens = model.Greedy(batch).tokens;
  EXPECT_EQ(tokens, std::vector<int32_t>(2, cases[2].greedy[1]));
}

TEST(Demo, LogitsAgreeWithTransformers) {
  const DemoGolden golden = ReadDemoGolden();
  HandBatches sequences(golden.logits_prompts, 512);
  OneRank model(kDemo, sequences.num_blocks());
  const int vocab_size = model.config().vocab_size;
  ASSERT_EQ(golden.logits.size(), golden.logits_prompts.size() * vocab_size);
  for (int i = 0; i < sequences.num_seqs(); ++i) {
    SCOPED_TRACE(i);
    const float* want = golden.logits.data() + int64_t{i} * vocab_size;
    ExpectNear(model.Forward(sequences.Prefill(i, kMaxTokens)), {want, want + vocab_size});
  }
}

TEST(Demo, GreedyTokensEqualTransformers) {
  const DemoGolden golden = ReadDemoGolden();
  HandBatches sequences(golden.greedy_prompts, 512);
  OneRank model(kDemo, sequences.num_blocks());
  EXPECT_EQ(GreedyTokens(&sequences, golden.greedy_tokens[0].size(), kMaxTokens,
                         [&](const Batch& batch) { return model.Greedy(batch); }),
            golden.greedy_tokens);
}

}  // namespace
}  // namespace bough
