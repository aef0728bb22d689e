#include "worker/model_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/worker_model/golden.h"
#include "tests/worker_model/hand_batch.h"
#include "tests/worker_model/model_folder.h"

namespace bough {
namespace {

using namespace testing;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class ModelRunnerTest : public ::testing::Test {
 protected:
  ModelRunnerTest() {
    options_.model_dir = kTinyMixtral;
    options_.kv_cache_memory_bytes = 8 << 20;
  }

  absl::StatusOr<std::unique_ptr<ModelRunner>> Load() {
    return ModelRunner::Load(options_, group_.get(), [](const RankProgress&) {});
  }
  // The one line with which start-up ends.
  std::string LoadError() {
    const auto runner = Load();
    EXPECT_FALSE(runner.ok());
    const std::string message(runner.status().message());
    EXPECT_THAT(message, Not(HasSubstr("\n")));
    return message;
  }

  const std::unique_ptr<MpiGroup> group_ = MpiGroup::Init(nullptr, nullptr);
  ModelRunnerOptions options_;
};

TEST_F(ModelRunnerTest, KnowsItsSizes) {
  const auto runner = Load();
  ASSERT_TRUE(runner.ok()) << runner.status();
  // 2 layers, K and V, 1 KV head, 64 tokens, 32 dims, f32.
  EXPECT_EQ((*runner)->kv_block_bytes(), 2 * 2 * 64 * 32 * 4);
  EXPECT_EQ((*runner)->num_blocks(), (8 << 20) / (2 * 2 * 64 * 32 * 4));
  EXPECT_EQ((*runner)->max_model_len(), 512);
}

TEST_F(ModelRunnerTest, KnowsItsNeedsBeforeAnythingIsLoaded) {
  const auto needs = ModelRunner::Needs(options_, group_.get());
  ASSERT_TRUE(needs.ok()) << needs.status();
  int64_t loaded_bytes = 0;
  const auto runner = ModelRunner::Load(
      options_, group_.get(), [&](const RankProgress& p) { loaded_bytes = p.bytes_total; });
  ASSERT_TRUE(runner.ok()) << runner.status();
  ASSERT_EQ(needs->ranks.size(), 1u);
  EXPECT_EQ(needs->ranks[0].weights, loaded_bytes);
  EXPECT_EQ(needs->block_bytes, (*runner)->kv_block_bytes());
  EXPECT_EQ(needs->max_model_len, (*runner)->max_model_len());

  // Activations are most of the scratch, and go with the tokens of a step.
  options_.max_num_batched_tokens *= 2;
  const auto doubled = ModelRunner::Needs(options_, group_.get());
  EXPECT_GT(doubled->ranks[0].scratch, needs->ranks[0].scratch * 3 / 2);
  EXPECT_LE(doubled->ranks[0].scratch, needs->ranks[0].scratch * 2);
}

TEST_F(ModelRunnerTest, RefusesOptionsThatDoNotFitByTheirFlag) {
  const ModelRunnerOptions good = options_;
  options_.tp_size = 2;
  EXPECT_EQ(LoadError(), "--tp-size * --ep-size = 2, but the group has 1 ranks");
  options_ = good;
  options_.num_experts_per_tok = 6;
  EXPECT_THAT(LoadError(),
              AllOf(HasSubstr("--num-experts-per-tok must be in [1, 5]"), HasSubstr("is 6")));
  options_ = good;
  options_.max_model_len = 513;
  EXPECT_THAT(LoadError(),
              AllOf(HasSubstr("--max-model-len must be in [1, 512]"), HasSubstr("is 513")));
  options_ = good;
  options_.load_format = "gguf";
  EXPECT_EQ(LoadError(), "--load-format must be auto or dummy, is gguf");
  options_ = good;
  options_.kv_cache_memory_bytes = 1000;
  EXPECT_THAT(LoadError(), HasSubstr("memory, 1000 bytes, holds no block"));
  options_ = good;
  options_.max_num_seqs = 0;
  EXPECT_EQ(LoadError(), "--max-num-seqs must be at least 1, is 0");
}

TEST_F(ModelRunnerTest, RefusesExpertsOfADenseModel) {
  options_.model_dir = kTinyLlama;
  options_.num_experts_per_tok = 2;
  EXPECT_EQ(LoadError(), "--num-experts-per-tok = 2: LlamaForCausalLM has no experts");
}

TEST_F(ModelRunnerTest, NamesAFolderThatIsNotThere) {
  options_.model_dir = "models/none";
  EXPECT_EQ(LoadError(), "models/none/config.json: cannot be opened");
}

TEST_F(ModelRunnerTest, NamesATruncatedCheckpoint) {
  const TempFolder folder;
  const std::string weights = ReadFile(std::string(kTinyMixtral) + "/model.safetensors");
  folder.Write("config.json", ReadFile(std::string(kTinyMixtral) + "/config.json"));
  folder.Write("model.safetensors", weights.substr(0, weights.size() / 2));
  options_.model_dir = folder.path();
  EXPECT_THAT(LoadError(), AllOf(HasSubstr(folder.File("model.safetensors")), HasSubstr("tensor '"),
                                 HasSubstr("truncated?")));
}

TEST_F(ModelRunnerTest, KeyNamesFolderAndPrecisionAndChangesWithTheExpertsPerToken) {
  const std::string key = (*Load())->model_key();
  EXPECT_THAT(key, HasSubstr("tiny_mixtral/"));
  options_.model_dir = std::string(kTinyMixtral) + "/";
  EXPECT_EQ((*Load())->model_key(), key);
  options_.num_experts_per_tok = 1;
  EXPECT_NE((*Load())->model_key(), key);
}

TEST_F(ModelRunnerTest, RunsDummyWeightsWithinRange) {
  options_.load_format = "dummy";
  const auto runner = Load();
  ASSERT_TRUE(runner.ok()) << runner.status();
  HandBatches sequence({{1, 2, 3, 4, 5}}, 64);
  Batch batch = sequence.Prefill(0, 64);
  batch.samples[0].num_logprobs = 0;
  const StepResult result = Execute(**runner, batch);
  // Log-softmax of 259 logits of order 1.
  EXPECT_GT(result.logprobs[0], -8);
  EXPECT_LT(result.logprobs[0], 0);
}

TEST_F(ModelRunnerTest, SamplesSeveralRowsFromOneRowOfLogits) {
  const auto runner = Load();
  const TinyCase golden = ReadTinyCases(kTinyMixtral)[1];
  HandBatches sequence({golden.prompt}, 64);
  Batch batch = sequence.Prefill(0, 64);
  batch.samples.resize(3, batch.samples[0]);
  batch.samples[1].num_logprobs = batch.max_top = 2;
  batch.samples[2].banned_begin = 0;
  batch.samples[2].banned_end = 1;
  batch.banned_ids = {golden.greedy[0]};
  const StepResult result = Execute(**runner, batch);
  ASSERT_EQ(result.tokens.size(), 3u);
  EXPECT_EQ(result.tokens[0], golden.greedy[0]);
  EXPECT_EQ(result.tokens[1], golden.greedy[0]);
  EXPECT_EQ(result.top_ids[2], golden.greedy[0]);
  EXPECT_EQ(result.tokens[2], result.top_ids[3]);  // the second best, now that the best is banned
}

}  // namespace
}  // namespace bough
