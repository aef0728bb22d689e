#include "worker/model/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/worker_model/device_wrapper.h"
#include "tests/worker_model/weight_views.h"
#include "worker/model/checkpoint.h"
#include "worker/model/dummy_weights.h"

namespace bough {
namespace {

using testing::At;
using testing::ExpectShardsAreCutFromTheWhole;
using ::testing::HasSubstr;
using testing::LoadedShard;
using testing::LoadShard;

constexpr char kTinyMixtral[] = "tests/golden/tiny_mixtral";
constexpr char kTinyLlama[] = "tests/golden/tiny_llama";

TEST(Weights, KeepBf16AndWidenNorms) {
  const auto config = LoadModelConfig(kTinyMixtral);
  const LoadedShard loaded = LoadShard(*config, **Checkpoint::Open(kTinyMixtral), false, 1, 1, 0);
  const Weights& w = loaded.weights;
  EXPECT_EQ(w.layers[0].gate_up.dtype, DType::kBF16);
  EXPECT_EQ(w.embedding.dtype, DType::kBF16);
  EXPECT_EQ(w.layers[0].input_norm.dtype, DType::kF32);
}

TEST(Weights, HeadSharesTheEmbeddingWhenTied) {
  const auto config = LoadModelConfig(kTinyLlama);
  ASSERT_TRUE(config->tie_word_embeddings);
  const LoadedShard loaded = LoadShard(*config, **Checkpoint::Open(kTinyLlama), false, 2, 1, 1);
  const Weights& w = loaded.weights;
  const int64_t first = config->vocab_size / 2 * config->hidden_size;
  EXPECT_EQ(static_cast<const float*>(w.lm_head.data),
            static_cast<const float*>(w.embedding.data) + first);
}

TEST(Weights, ShardsTileTheFullTensors) {
  const auto config = LoadModelConfig(kTinyMixtral);
  const auto source = Checkpoint::Open(kTinyMixtral);
  ExpectShardsAreCutFromTheWhole(*config, **source, false, 3, 1);
  ExpectShardsAreCutFromTheWhole(*config, **source, false, 1, 3);  // 5 experts over 3 ranks
}

TEST(Weights, DummyShardsAreCutFromOneTensor) {
  const auto config = LoadModelConfig(kTinyMixtral);
  ExpectShardsAreCutFromTheWhole(*config, DummyWeights(), false, 3, 1);
  ExpectShardsAreCutFromTheWhole(*config, DummyWeights(), true, 3, 1);
}

TEST(Weights, DummyMatricesHaveVarianceOneOverColumnsAndNormsAreOnes) {
  const auto config = LoadModelConfig(kTinyMixtral);
  const LoadedShard full = LoadShard(*config, DummyWeights(), false, 1, 1, 0);
  const int64_t hidden = config->hidden_size, count = 5 * 2 * config->intermediate_size * hidden;
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float value = At(full.weights.layers[0].gate_up, i, hidden);
    sum += value;
    squares += value * value;
  }
  EXPECT_NEAR(sum / count, 0, 0.01);
  EXPECT_NEAR(squares / count * hidden, 1, 0.05);
  EXPECT_EQ(At(full.weights.layers[1].input_norm, hidden - 1, 1), 1);
}

TEST(Weights, ReportProgressFromNothingToAll) {
  const auto config = LoadModelConfig(kTinyMixtral);
  std::vector<std::pair<int64_t, int64_t>> reports;
  const auto device = MakeCpuDevice();
  ASSERT_TRUE(LoadWeights(*config, *MakeShard(*config, 1, 1, 0), DummyWeights(), false,
                          device.get(),
                          [&](int64_t done, int64_t total) {
                            reports.push_back({done, total});
                          })
                  .ok());
  ASSERT_GE(reports.size(), 2u);
  EXPECT_EQ(reports.front().first, 0);
  EXPECT_EQ(reports.back().first, reports.back().second);
}

TEST(Weights, NameATensorThatTheConfigContradicts) {
  auto config = LoadModelConfig(kTinyMixtral);
  const auto source = Checkpoint::Open(kTinyMixtral);
  config->intermediate_size = 96;
  const auto device = MakeCpuDevice();
  const auto load = [&] {
    return LoadWeights(*config, *MakeShard(*config, 1, 1, 0), **source, false, device.get(),
                       [](auto, auto) {})
        .status();
  };
  EXPECT_THAT(std::string(load().message()),
              HasSubstr("experts.0.w1.weight' has shape [80, 96], config.json says [96, 96]"));
  config->num_hidden_layers = 3;
  config->intermediate_size = 80;
  EXPECT_THAT(std::string(load().message()),
              HasSubstr("tensor 'model.layers.2.input_layernorm.weight' is missing"));
}

// The CPU's memory, up to a limit.
class SmallDevice : public testing::DeviceWrapper {
 public:
  explicit SmallDevice(int64_t num_bytes) : free_bytes_(num_bytes) {}
  int num_allocations() const { return num_allocations_; }

  void* Allocate(int64_t num_bytes) override {
    if (num_bytes > free_bytes_) return nullptr;
    free_bytes_ -= num_bytes;
    ++num_allocations_;
    return DeviceWrapper::Allocate(num_bytes);
  }
  void Free(void* data) override {
    --num_allocations_;
    DeviceWrapper::Free(data);
  }

 private:
  int64_t free_bytes_;
  int num_allocations_ = 0;
};

TEST(Weights, SayWhatDoesNotFitAndFreeWhatDid) {
  const auto config = LoadModelConfig(kTinyMixtral);
  SmallDevice device(200'000);
  const auto weights = LoadWeights(*config, *MakeShard(*config, 1, 1, 0), DummyWeights(), false,
                                   &device, [](auto, auto) {});
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(weights.status().message()),
              HasSubstr("weights: cannot allocate 153600 bytes on test"));
  EXPECT_EQ(device.num_allocations(), 0);
}

TEST(Weights, BytesAreKnownBeforeLoading) {
  const auto config = LoadModelConfig(kTinyMixtral);
  const auto source = Checkpoint::Open(kTinyMixtral);
  for (bool quantize : {false, true}) {
    const auto expected =
        WeightBytes(*config, *MakeShard(*config, 3, 1, 1), **source, quantize, /*is_cuda=*/false);
    ASSERT_TRUE(expected.ok()) << expected.status();
    const LoadedShard loaded = LoadShard(*config, **source, quantize, 3, 1, 1);
    int64_t num_bytes = 0;
    for (const DeviceBuffer& buffer : loaded.weights.storage) num_bytes += buffer.num_bytes();
    EXPECT_EQ(num_bytes, *expected);
  }
}

}  // namespace
}  // namespace bough
