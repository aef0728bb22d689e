#include "worker/model/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "tests/worker_model/model_folder.h"
#include "worker/model/checkpoint.h"
#include "worker/model/dummy_weights.h"

namespace bough {
namespace {

using ::testing::HasSubstr;

constexpr char kTinyMixtral[] = "tests/golden/tiny_mixtral";
constexpr char kTinyLlama[] = "tests/golden/tiny_llama";

Weights LoadShard(const ModelConfig& config, const WeightSource& source, int tp, int ep, int rank) {
  auto weights = LoadWeights(config, *MakeShard(config, tp, ep, rank), source, [](auto, auto) {});
  EXPECT_TRUE(weights.ok()) << weights.status();
  return *std::move(weights);
}

float At(const Weight& weight, int64_t i) {
  if (weight.dtype == DType::kF32) return static_cast<const float*>(weight.data)[i];
  return BF16ToFloat(static_cast<const uint16_t*>(weight.data)[i]);
}

// Row `row` of two matrices of `cols` columns agrees.
void ExpectSameRow(const Weight& a, int64_t a_row, const Weight& b, int64_t b_row, int64_t cols) {
  for (int64_t i = 0; i < cols; ++i) {
    ASSERT_EQ(At(a, a_row * cols + i), At(b, b_row * cols + i)) << "column " << i;
  }
}

TEST(Weights, KeepBf16AndWidenNorms) {
  const auto config = LoadModelConfig(kTinyMixtral);
  const Weights w = LoadShard(*config, **Checkpoint::Open(kTinyMixtral), 1, 1, 0);
  EXPECT_EQ(w.layers[0].gate_up.dtype, DType::kBF16);
  EXPECT_EQ(w.embedding.dtype, DType::kBF16);
  EXPECT_EQ(w.layers[0].input_norm.dtype, DType::kF32);
}

TEST(Weights, HeadSharesTheEmbeddingWhenTied) {
  const auto config = LoadModelConfig(kTinyLlama);
  ASSERT_TRUE(config->tie_word_embeddings);
  const Weights w = LoadShard(*config, **Checkpoint::Open(kTinyLlama), 2, 1, 1);
  const int64_t first = config->vocab_size / 2 * config->hidden_size;
  EXPECT_EQ(static_cast<const float*>(w.lm_head.data),
            static_cast<const float*>(w.embedding.data) + first);
}

TEST(Weights, ExpertShardsTileTheFullTensors) {
  const auto config = LoadModelConfig(kTinyMixtral);
  const auto source = Checkpoint::Open(kTinyMixtral);
  const Weights full = LoadShard(*config, **source, 1, 1, 0);
  const int64_t hidden = config->hidden_size, inter = config->intermediate_size;
  for (int rank = 0; rank < 3; ++rank) {  // 5 experts over 3 ranks
    const Shard shard = *MakeShard(*config, 1, 3, rank);
    const Weights part = LoadShard(*config, **source, 1, 3, rank);
    for (int64_t e = 0; e < shard.num_experts(); ++e) {
      const int64_t global = shard.experts.begin + e;
      for (int64_t row = 0; row < 2 * inter; ++row) {
        ExpectSameRow(part.layers[1].gate_up, e * 2 * inter + row, full.layers[1].gate_up,
                      global * 2 * inter + row, hidden);
      }
    }
  }
}

TEST(Weights, IntermediateSlicesTileGateUpAndDown) {
  const auto config = LoadModelConfig(kTinyMixtral);
  const auto source = Checkpoint::Open(kTinyMixtral);
  const Weights full = LoadShard(*config, **source, 1, 1, 0);
  const int64_t hidden = config->hidden_size, inter = config->intermediate_size;
  for (int rank = 0; rank < 3; ++rank) {
    const Shard shard = *MakeShard(*config, 3, 1, rank);
    const Weights part = LoadShard(*config, **source, 3, 1, rank);
    const int64_t width = shard.intermediate_size(), begin = shard.intermediate.begin;
    for (int64_t i = 0; i < width; ++i) {  // expert 0: gate rows, then up rows
      ExpectSameRow(part.layers[0].gate_up, i, full.layers[0].gate_up, begin + i, hidden);
      ExpectSameRow(part.layers[0].gate_up, width + i, full.layers[0].gate_up, inter + begin + i,
                    hidden);
    }
    for (int64_t row = 0; row < hidden; ++row) {
      for (int64_t i = 0; i < width; ++i) {
        ASSERT_EQ(At(part.layers[0].down, row * width + i),
                  At(full.layers[0].down, row * inter + begin + i));
      }
    }
  }
}

TEST(Weights, DummyShardsAreCutFromOneTensor) {
  const auto config = LoadModelConfig(kTinyMixtral);
  const DummyWeights source;
  const Weights full = LoadShard(*config, source, 1, 1, 0);
  const Weights part = LoadShard(*config, source, 3, 1, 2);
  const int64_t hidden = config->hidden_size, head_dim = config->head_dim;
  for (int64_t row = 0; row < head_dim; ++row) {  // query head 2
    ExpectSameRow(part.layers[0].qkv, row, full.layers[0].qkv, 2 * head_dim + row, hidden);
  }
  double sum = 0, squares = 0;
  const int64_t count = int64_t{config->vocab_size} * hidden;
  for (int64_t i = 0; i < count; ++i) {
    sum += At(full.embedding, i);
    squares += At(full.embedding, i) * At(full.embedding, i);
  }
  EXPECT_NEAR(sum / count, 0, 0.01);
  EXPECT_NEAR(squares / count * hidden, 1, 0.05);
}

TEST(Weights, ReportProgressFromNothingToAll) {
  const auto config = LoadModelConfig(kTinyMixtral);
  std::vector<std::pair<int64_t, int64_t>> reports;
  ASSERT_TRUE(LoadWeights(*config, *MakeShard(*config, 1, 1, 0), DummyWeights(),
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
  const auto wrong =
      LoadWeights(*config, *MakeShard(*config, 1, 1, 0), **source, [](auto, auto) {});
  EXPECT_THAT(std::string(wrong.status().message()),
              HasSubstr("experts.0.w1.weight' has shape [80, 96], config.json says [96, 96]"));
  config->num_hidden_layers = 3;
  config->intermediate_size = 80;
  const auto absent =
      LoadWeights(*config, *MakeShard(*config, 1, 1, 0), **source, [](auto, auto) {});
  EXPECT_THAT(std::string(absent.status().message()),
              HasSubstr("tensor 'model.layers.2.input_layernorm.weight' is missing"));
}

}  // namespace
}  // namespace bough
