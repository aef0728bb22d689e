// Graphs, sampling and the engine's two steps in flight, on a GPU.
#include "worker/model_runner.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "common/check.h"
#include "tests/worker_cuda/one_rank.h"
#include "tests/worker_cuda/teacher.h"
#include "worker/engine.h"

namespace bough {
namespace {

using namespace testing;

constexpr double kMinSameTokens = 0.99;
constexpr int kMaxNumSeqs = 64;

class CudaModelRunner : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto device = OpenCudaDevice(0);
    if (!device.ok()) GTEST_SKIP() << device.status().message();
  }

  std::unique_ptr<ModelRunner> Load(bool enforce_eager) {
    ModelRunnerOptions options;
    options.model_dir = kDemo;
    options.device = "cuda";
    options.kv_cache_memory_bytes = 256 << 20;
    options.max_num_batched_tokens = 512;
    options.max_num_seqs = kMaxNumSeqs;
    options.max_model_len = 1024;
    options.enforce_eager = enforce_eager;
    auto runner = ModelRunner::Load(options, group_.get(), [](const RankProgress&) {});
    CHECK_OK(runner.status());
    return *std::move(runner);
  }

  EngineConfig MakeEngineConfig(const ModelRunner& runner) {
    EngineConfig config = EngineConfigFor(runner);
    config.max_num_seqs = kMaxNumSeqs;
    config.max_num_batched_tokens = 512;
    return config;
  }

  // Every request's choices, concatenated, by request.
  std::vector<TokenIds> Generate(ModelRunner* runner, const std::vector<TokenIds>& prompts, int n,
                                 float temperature, int num_tokens) {
    Engine engine(MakeEngineConfig(*runner), runner);
    for (size_t i = 0; i < prompts.size(); ++i) {
      Request request;
      request.key = {.link = 0, .handle = i};
      request.prompt_ids = prompts[i];
      request.sampling.temperature = temperature;
      request.sampling.max_tokens = num_tokens;
      request.sampling.ignore_eos = true;
      request.sampling.seed = i;
      for (int c = 0; c < n; ++c) request.choices.push_back({.index = c, .emitted = {}});
      engine.Submit(std::move(request));
    }
    std::map<std::pair<uint64_t, int>, TokenIds> answers;
    while (const auto events = engine.Step(absl::Now())) {
      engine.CheckIntegrity();
      for (const TokenEvent& t : events->tokens) {
        answers[{t.key.handle, t.choice}].push_back(t.token);
      }
      for (const DoneEvent& done : events->dones) EXPECT_TRUE(done.status.ok()) << done.status;
    }
    std::vector<TokenIds> all(prompts.size());
    for (const auto& [key, tokens] : answers) {
      all[key.first].insert(all[key.first].end(), tokens.begin(), tokens.end());
    }
    return all;
  }

  const std::unique_ptr<MpiGroup> group_ = MpiGroup::Init(nullptr, nullptr);
  const DemoGolden golden_ = ReadDemoGolden();
};

TEST_F(CudaModelRunner, GraphsSayTheGreedyTokensOfTheCpu) {
  const auto runner = Load(false);
  EXPECT_GE(ShareOfSameTokens(golden_.greedy_prompts, golden_.greedy_tokens, 512,
                              [&](const Batch& batch) { return Execute(*runner, batch); }),
            kMinSameTokens);
}

// Decode steps of every number of rows that is padded and of some that are not; from 9 rows on, all
// share two blocks and the last five a third.
TEST_F(CudaModelRunner, GraphsGiveTheLogprobsOfEagerLaunches) {
  // Padded steps split sums otherwise; where that tips a token to another expert, more differs.
  constexpr float kTolerance = 0.05f;  // nats
  int num_near = 0, num_rows = 0;
  const auto recorded = Load(false), eager = Load(true);
  for (int num_seqs : {1, 3, 8, 9, 17, 33}) {
    SCOPED_TRACE(num_seqs);
    std::vector<TokenIds> prompts, answers;
    for (int i = 0; i < num_seqs; ++i) {
      const size_t from = i % golden_.greedy_prompts.size();
      prompts.push_back(golden_.greedy_prompts[from]);
      prompts.back().push_back(3 + i);
      answers.push_back(golden_.greedy_tokens[from]);
      answers.back().resize(8);
    }
    std::vector<SharedNode> nodes;
    if (num_seqs >= 9) {
      PrependText(golden_, 192, &prompts);
      nodes = {{0, num_seqs, 0, 128}, {num_seqs - 5, num_seqs, 128, 192}};
    }
    LeadAlong(prompts, answers, nodes, 512, [&](Batch batch, const std::vector<int>& rows) {
      batch.max_top = 1;
      for (SamplingRow& row : batch.samples) row.num_logprobs = 1;
      const StepResult a = Execute(*recorded, batch), b = Execute(*eager, batch);
      for (size_t i = 0; i < rows.size(); ++i) {
        num_near += std::abs(a.top_logprobs[i] - b.top_logprobs[i]) <= kTolerance;
        ++num_rows;
        EXPECT_EQ(a.top_ids[i], a.tokens[i]);
      }
    });
  }
  EXPECT_GE(num_near, 0.99 * num_rows) << num_rows << " rows";
}

// The tokens of a step are embedded by the next one before the host has seen them.
TEST_F(CudaModelRunner, EngineSaysWhatTheCpuWouldSay) {
  const auto runner = Load(false);
  ASSERT_EQ(runner->max_steps_in_flight(), 2);
  const auto answers = Generate(runner.get(), golden_.greedy_prompts, 1, 0, 64);
  auto cpu = OneRank::Load({.model_dir = kDemo, .num_blocks = 256});
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  EXPECT_GE(ShareOfSameTokens(golden_.greedy_prompts, answers, 512,
                              [&](const Batch& batch) { return (*cpu)->Greedy(batch); }),
            kMinSameTokens);
}

TEST_F(CudaModelRunner, TheSameRequestsGetTheSameTokens) {
  const auto runner = Load(false);
  const auto once = Generate(runner.get(), golden_.greedy_prompts, 5, 1, 40);
  EXPECT_EQ(Generate(runner.get(), golden_.greedy_prompts, 5, 1, 40), once);
  EXPECT_EQ(once[0].size(), 5u * 40u);
}

}  // namespace
}  // namespace bough
