// A model of dummy weights must cost what a real one costs: no number overflows or vanishes, and
// tokens spread over the experts.
#include "worker/model/dummy_weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <random>

#include "tests/worker_model/hand_batch.h"
#include "worker/model/decoder.h"

namespace bough {
namespace {

constexpr int kNumLayers = 32, kNumTokens = 256, kNumExperts = 8, kTopK = 2;

// What the router saw and chose, layer by layer.
struct Routing {
  std::vector<std::vector<int>> tokens_of_expert;
  std::vector<double> residual_rms;
};
Routing* routing = nullptr;

// The CPU's ops, which tell `routing` when a layer routes.
Ops CountingOps() {
  Ops ops = cpu::Table();
  ops.AddRmsNormGate = [](const AddRmsNormGateParams& p, Stream stream) {
    cpu::Table().AddRmsNormGate(p, stream);
    std::vector<int> counts(p.num_experts);
    for (int i = 0; i < p.norm.num_tokens * p.top_k; ++i) ++counts[p.expert_ids[i]];
    routing->tokens_of_expert.push_back(counts);
    double squares = 0;
    const int count = p.norm.num_tokens * p.norm.hidden_size;
    for (int i = 0; i < count; ++i) {
      const double value = static_cast<const float*>(p.norm.residual)[i];
      squares += value * value;
    }
    routing->residual_rms.push_back(std::sqrt(squares / count));
  };
  return ops;
}

ModelConfig SmallMixtral() {
  ModelConfig c;
  c.architecture = "MixtralForCausalLM";
  c.vocab_size = 1000;
  c.hidden_size = 128;
  c.intermediate_size = 448;  // 3.5 times hidden_size, as Mixtral-8x7B has it
  c.num_hidden_layers = kNumLayers;
  c.num_attention_heads = 4;
  c.num_key_value_heads = 1;
  c.head_dim = 32;
  c.num_local_experts = kNumExperts;
  c.num_experts_per_tok = kTopK;
  c.max_position_embeddings = 4096;
  c.rope_theta = 1e6f;
  return c;
}

class DummyModel : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Quantized, DummyModel, ::testing::Bool());

TEST_P(DummyModel, StaysInRangeAndRoutesEvenlyThroughAllLayers) {
  Routing seen;
  routing = &seen;
  const Ops ops = CountingOps();
  const auto device = MakeCpuDevice();
  device->set_ops(&ops);
  const ModelConfig config = SmallMixtral();
  const Shard shard = *MakeShard(config, 1, 1, 0);
  const auto weights =
      LoadWeights(config, shard, DummyWeights(), GetParam(), device.get(), [](auto, auto) {});
  ASSERT_TRUE(weights.ok()) << weights.status();
  testing::TokenIds prompt(kNumTokens);
  std::mt19937 random(1);
  for (int32_t& token : prompt) token = static_cast<int32_t>(random() % config.vocab_size);
  testing::HandBatches batches({prompt}, kNumTokens + 1);
  const auto group = MpiGroup::Init(nullptr, nullptr);
  const auto comm = MakeCpuCommunicator(group.get());
  KvCache cache =
      *KvCache::Allocate(config, shard, DType::kF32, batches.num_blocks(), device.get());
  Decoder decoder(config, shard, {kNumTokens, 1}, AttentionOptions(), device.get(), &*weights,
                  &cache, comm.get());
  const Batch batch = batches.Prefill(0, kNumTokens);
  const float* logits = decoder.Forward(BatchMemory(device.get()).Upload(batch), nullptr);

  for (int i = 0; i < config.vocab_size; ++i) ASSERT_TRUE(std::isfinite(logits[i])) << i;
  ASSERT_EQ(seen.tokens_of_expert.size(), size_t{kNumLayers});
  const double share = kNumTokens * kTopK / kNumExperts;
  for (int layer = 0; layer < kNumLayers; ++layer) {
    EXPECT_GT(seen.residual_rms[layer], 0.5) << layer;
    EXPECT_LT(seen.residual_rms[layer], 2) << layer;
    for (int tokens : seen.tokens_of_expert[layer]) {
      EXPECT_GT(tokens, share / 2) << "layer " << layer;
      EXPECT_LT(tokens, share * 2) << "layer " << layer;
    }
  }
}

}  // namespace
}  // namespace bough
