// Weights on a GPU are the CPU's, bit by bit where both store them alike.
#include <gtest/gtest.h>

#include <cstring>

#include "tests/worker_model/fp8_folder.h"
#include "tests/worker_model/weight_views.h"
#include "worker/model/dummy_weights.h"

namespace bough {
namespace {

using testing::Fp8Layout;

constexpr char kTinyMixtral[] = "tests/golden/tiny_mixtral";
constexpr char kTinyLlama[] = "tests/golden/tiny_llama";  // f32

class CudaWeights : public ::testing::Test {
 protected:
  void SetUp() override {
    auto device = OpenCudaDevice(0);
    if (!device.ok()) GTEST_SKIP() << device.status().message();
    cuda_ = *std::move(device);
  }

  // A weight of `count` elements as floats, scales (one per `cols` elements) multiplied in.
  std::vector<float> Floats(Device* device, const Weight& weight, int64_t count, int64_t cols) {
    std::vector<uint8_t> elements(count * SizeOf(weight.dtype));
    device->CopyToHost(elements.data(), weight.data, elements.size());
    std::vector<float> scale(weight.scale == nullptr ? 0 : count / cols);
    device->CopyToHost(scale.data(), weight.scale, scale.size() * sizeof(float));
    device->Synchronize();
    const Weight host = {elements.data(), scale.data(), weight.dtype};
    std::vector<float> values(count);
    for (int64_t i = 0; i < count; ++i) values[i] = testing::At(host, i, cols);
    return values;
  }

  // The last rank's weights, on both. Where the CPU has f32 and the GPU bf16, the first is rounded.
  // `linear`: what the GPU has for the linear layers.
  void ExpectAlike(const ModelConfig& c, const WeightSource& source, bool quantize, int tp,
                   DType linear) {
    const int rank = tp - 1;
    const Shard s = *MakeShard(c, tp, 1, rank);
    auto loaded = LoadWeights(c, s, source, quantize, cuda_.get(), [](auto, auto) {});
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    const testing::LoadedShard cpu = testing::LoadShard(c, source, quantize, tp, 1, rank);
    const auto expect = [&](const Weight& a, const Weight& b, int64_t rows, int64_t cols) {
      const std::vector<float> got = Floats(cuda_.get(), a, rows * cols, cols);
      std::vector<float> want = Floats(cpu.device.get(), b, rows * cols, cols);
      if (a.dtype == DType::kBF16) {
        for (float& value : want) value = BF16ToFloat(FloatToBF16(value));
      }
      for (int64_t i = 0; i < rows * cols; ++i) ASSERT_EQ(got[i], want[i]) << i;
    };
    const int64_t hidden = c.hidden_size, q = s.num_heads() * c.head_dim;
    const int64_t kv = s.num_kv_heads() * c.head_dim, inter = s.intermediate_size();
    const int64_t experts = c.is_moe() ? s.num_experts() : 1;
    expect(loaded->embedding, cpu.weights.embedding, c.vocab_size, hidden);
    expect(loaded->lm_head, cpu.weights.lm_head, s.vocab.size(), hidden);
    expect(loaded->norm, cpu.weights.norm, hidden, 1);
    EXPECT_EQ(loaded->norm.dtype, DType::kF32);
    for (int i = 0; i < c.num_hidden_layers; ++i) {
      const LayerWeights &a = loaded->layers[i], &b = cpu.weights.layers[i];
      expect(a.input_norm, b.input_norm, hidden, 1);
      expect(a.qkv, b.qkv, q + 2 * kv, hidden);
      expect(a.o, b.o, hidden, q);
      expect(a.gate_up, b.gate_up, experts * 2 * inter, hidden);
      expect(a.down, b.down, experts * hidden, inter);
      if (c.is_moe()) expect(a.gate, b.gate, c.num_local_experts, hidden);
      EXPECT_EQ(a.gate_up.dtype, linear);
      EXPECT_EQ(a.k_scale == nullptr, b.k_scale == nullptr);
      if (a.k_scale == nullptr) continue;
      float k_scale = 0;
      cuda_->CopyToHost(&k_scale, a.k_scale, sizeof(k_scale));
      EXPECT_EQ(k_scale, b.k_scale[0]);
    }
  }

  std::unique_ptr<Device> cuda_;
};

TEST_F(CudaWeights, Bf16StaysAsStored) {
  const auto source = Checkpoint::Open(kTinyMixtral);
  for (int tp : {1, 3})
    ExpectAlike(*LoadModelConfig(kTinyMixtral), **source, false, tp, DType::kBF16);
}

TEST_F(CudaWeights, F32BecomesBf16) {
  const auto source = Checkpoint::Open(kTinyLlama);
  ExpectAlike(*LoadModelConfig(kTinyLlama), **source, false, 1, DType::kBF16);
}

TEST_F(CudaWeights, AreQuantisedOnLoadAsOnTheCpu) {
  const auto mixtral = Checkpoint::Open(kTinyMixtral), llama = Checkpoint::Open(kTinyLlama);
  for (int tp : {1, 3})
    ExpectAlike(*LoadModelConfig(kTinyMixtral), **mixtral, true, tp, DType::kF8E4M3);
  ExpectAlike(*LoadModelConfig(kTinyLlama), **llama, true, 1, DType::kF8E4M3);
}

TEST_F(CudaWeights, Fp8FoldersStayAsStored) {
  for (Fp8Layout layout :
       {Fp8Layout::kAutoFp8, Fp8Layout::kCompressedTensors, Fp8Layout::kModelOpt}) {
    const testing::TempFolder folder;
    testing::WriteFp8Folder(kTinyMixtral, layout, folder);
    const auto source = Checkpoint::Open(folder.path());
    for (int tp : {1, 3})
      ExpectAlike(*LoadModelConfig(folder.path()), **source, false, tp, DType::kF8E4M3);
  }
}

TEST_F(CudaWeights, DummyWeightsAreTheCpus) {
  for (bool quantize : {false, true}) {
    ExpectAlike(*LoadModelConfig(kTinyMixtral), DummyWeights(), quantize, 3,
                quantize ? DType::kF8E4M3 : DType::kBF16);
  }
}

TEST_F(CudaWeights, SayWhatDoesNotFitAndFreeWhatDid) {
  ModelConfig config = *LoadModelConfig(kTinyMixtral);
  config.intermediate_size = 1 << 20;  // 2 layers of 5 experts: 3 GB; times 64: no GPU's
  config.num_local_experts = 5 * 64;
  const int64_t free_bytes = cuda_->FreeBytes();
  const auto weights = LoadWeights(config, *MakeShard(config, 1, 1, 0), DummyWeights(), false,
                                   cuda_.get(), [](auto, auto) {});
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kResourceExhausted) << weights.status();
  EXPECT_EQ(cuda_->FreeBytes(), free_bytes);
}

}  // namespace
}  // namespace bough
