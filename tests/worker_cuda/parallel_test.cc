// The demo model over two GPUs, both ways: tensor and expert parallel.
#include <gtest/gtest.h>

#include <sstream>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "tests/worker_cuda/teacher.h"
#include "tests/worker_model/parallel_main.h"
#include "worker/model_runner.h"

namespace bough {
namespace {

using namespace testing;

constexpr double kMinSameTokens = 0.99;

struct Layout {
  int tp_size, ep_size;
};

std::unique_ptr<ModelRunner> LoadRunner(const Layout& layout) {
  ModelRunnerOptions options;
  options.model_dir = kDemo;
  options.device = "cuda";
  options.tp_size = layout.tp_size;
  options.ep_size = layout.ep_size;
  options.kv_cache_memory_bytes = 256 << 20;
  options.max_num_batched_tokens = 512;
  options.max_num_seqs = 64;
  options.max_model_len = 1024;
  auto runner = ModelRunner::Load(options, Group(), [](const RankProgress&) {});
  CHECK_OK(runner.status());
  return *std::move(runner);
}

void Follow(const std::string& words) {
  Layout layout;
  std::istringstream(words) >> layout.tp_size >> layout.ep_size;
  LoadRunner(layout)->Follow();
}

class CudaParallel : public ::testing::TestWithParam<Layout> {
 protected:
  void SetUp() override {
    const int world = GetParam().tp_size * GetParam().ep_size;
    if (Group()->size() != world) GTEST_SKIP() << "for " << world << " ranks";
    const auto device = OpenCudaDevice(world - 1);
    if (!device.ok()) GTEST_SKIP() << device.status().message();
  }
};
INSTANTIATE_TEST_SUITE_P(, CudaParallel, ::testing::Values(Layout{2, 1}, Layout{1, 2}),
                         [](const auto& info) {
                           return absl::StrCat("tp", info.param.tp_size, "_ep", info.param.ep_size);
                         });

TEST_P(CudaParallel, SaysTheGreedyTokensOfTheCpu) {
  StartFollowers(absl::StrCat(GetParam().tp_size, " ", GetParam().ep_size));
  const std::unique_ptr<ModelRunner> runner = LoadRunner(GetParam());
  const DemoGolden golden = ReadDemoGolden();
  EXPECT_GE(ShareOfSameTokens(golden.greedy_prompts, golden.greedy_tokens, 512,
                              [&](const Batch& batch) { return Execute(*runner, batch); }),
            kMinSameTokens);
  runner->Shutdown();
}

}  // namespace
}  // namespace bough

int main(int argc, char** argv) {
  return bough::testing::RunParallelTests(argc, argv, bough::Follow);
}
