// Whatever the layout, the tokens are those of transformers. Runs alone and under mpirun; each
// number of ranks takes the models and layouts that fit it.
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "tests/worker_model/golden.h"
#include "tests/worker_model/hand_batch.h"
#include "tests/worker_model/parallel_main.h"
#include "worker/model_runner.h"

namespace bough {
namespace {

using namespace testing;

struct Layout {
  std::string model_dir;
  int tp_size, ep_size;
};

// As one line, for followers and test names.
std::string Words(const Layout& l) {
  return absl::StrCat(l.model_dir, " ", l.tp_size, " ", l.ep_size);
}

// All ways to lay the models out over this group's ranks.
std::vector<Layout> Layouts() {
  std::vector<Layout> layouts;
  for (const char* model_dir : {kTinyMixtral, kTinyLlama, kTinyMistral, kDemo}) {
    const auto config = LoadModelConfig(model_dir);
    CHECK_OK(config.status());
    const int world = Group()->size();
    if (config->num_attention_heads % world != 0) continue;
    for (int tp_size = 1; tp_size <= world; ++tp_size) {
      if (world % tp_size == 0) layouts.push_back({model_dir, tp_size, world / tp_size});
    }
  }
  return layouts;
}

std::unique_ptr<ModelRunner> LoadRunner(const Layout& layout) {
  ModelRunnerOptions options;
  options.model_dir = layout.model_dir;
  options.tp_size = layout.tp_size;
  options.ep_size = layout.ep_size;
  options.kv_cache_memory_bytes = 256 << 20;
  options.max_num_batched_tokens = 512;
  auto runner = ModelRunner::Load(options, Group(), [](const RankProgress&) {});
  CHECK_OK(runner.status());
  return *std::move(runner);
}

void Follow(const std::string& words) {
  Layout layout;
  std::istringstream(words) >> layout.model_dir >> layout.tp_size >> layout.ep_size;
  LoadRunner(layout)->Follow();
}

// Prompts and the tokens that transformers continued them with.
std::pair<std::vector<TokenIds>, std::vector<TokenIds>> GreedyCases(const std::string& model_dir) {
  if (model_dir == kDemo) {
    const DemoGolden golden = ReadDemoGolden();
    return {golden.greedy_prompts, golden.greedy_tokens};
  }
  std::vector<TokenIds> prompts, answers;
  for (const TinyCase& c : ReadTinyCases(model_dir)) {
    prompts.push_back(c.prompt);
    answers.push_back(c.greedy);
  }
  return {prompts, answers};
}

class ModelRunnerLayout : public ::testing::TestWithParam<Layout> {};
INSTANTIATE_TEST_SUITE_P(, ModelRunnerLayout, ::testing::ValuesIn(Layouts()), [](const auto& info) {
  std::string name = Words(info.param);
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(c); }, '_');
  return name;
});

TEST_P(ModelRunnerLayout, GivesTheGreedyTokensOfTransformers) {
  StartFollowers(Words(GetParam()));
  const std::unique_ptr<ModelRunner> runner = LoadRunner(GetParam());
  const auto [prompts, answers] = GreedyCases(GetParam().model_dir);
  HandBatches sequences(prompts, 512);
  ASSERT_LE(sequences.num_blocks(), runner->num_blocks());
  EXPECT_EQ(GreedyTokens(&sequences, static_cast<int>(answers[0].size()), 512,
                         [&](const Batch& batch) { return Execute(*runner, batch); }),
            answers);
  runner->Shutdown();
}

}  // namespace
}  // namespace bough

int main(int argc, char** argv) {
  return bough::testing::RunParallelTests(argc, argv, bough::Follow);
}
