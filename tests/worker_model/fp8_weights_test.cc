// FP8 checkpoints of each family of exporters, and bf16 checkpoints quantised on load.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/elementwise.h"
#include "tests/worker_model/fp8_folder.h"
#include "tests/worker_model/weight_views.h"

namespace bough {
namespace {

using testing::At;
using testing::ExpectShardsAreCutFromTheWhole;
using testing::Fp8Layout;
using ::testing::HasSubstr;
using testing::LoadedShard;
using testing::LoadShard;

constexpr char kTinyMixtral[] = "tests/golden/tiny_mixtral";
constexpr char kW1[] = "model.layers.1.block_sparse_moe.experts.2.w1.weight";

class Fp8Weights : public ::testing::TestWithParam<Fp8Layout> {
 protected:
  Fp8Weights() { testing::WriteFp8Folder(kTinyMixtral, GetParam(), folder_); }

  ModelConfig Config() const {
    const auto config = LoadModelConfig(folder_.path());
    EXPECT_TRUE(config.ok()) << config.status();
    return *config;
  }
  std::unique_ptr<Checkpoint> Source() const { return *Checkpoint::Open(folder_.path()); }

  // Rows of `weight` from `first_row` on hold the stored tensor's bytes and scales as they are.
  void ExpectStored(const Weight& weight, int64_t first_row, const std::string& tensor) const {
    const auto tensors = testing::ReadTensors(folder_.path());
    const testing::TestTensor &elements = tensors.at(tensor),
                              &scale = tensors.at(tensor + "_scale");
    ASSERT_EQ(weight.dtype, DType::kF8E4M3) << tensor;
    const int64_t rows = elements.shape[0], cols = elements.shape[1];
    EXPECT_EQ(std::memcmp(static_cast<const uint8_t*>(weight.data) + first_row * cols,
                          elements.bytes.data(), rows * cols),
              0)
        << tensor;
    const int64_t scale_bytes = scale.dtype == "F32" ? 4 : 2;
    const bool one = static_cast<int64_t>(scale.bytes.size()) == scale_bytes;
    for (int64_t row = 0; row < rows; ++row) {
      uint32_t bits = 0;  // bf16 is the upper half of an f32
      std::memcpy(reinterpret_cast<char*>(&bits) + 4 - scale_bytes,
                  scale.bytes.data() + (one ? 0 : row * scale_bytes), scale_bytes);
      ASSERT_EQ(weight.scale[first_row + row], std::bit_cast<float>(bits)) << tensor << " " << row;
    }
  }

  testing::TempFolder folder_;
};

TEST_P(Fp8Weights, KeepElementsAndScalesOfEachTensorAsStored) {
  const ModelConfig c = Config();
  EXPECT_TRUE(c.is_fp8);
  const LoadedShard loaded = LoadShard(c, *Source(), false, 1, 1, 0);
  const LayerWeights& layer = loaded.weights.layers[1];
  const int64_t q_size = c.num_attention_heads * c.head_dim;
  const int64_t kv_size = c.num_key_value_heads * c.head_dim;
  const std::string prefix = "model.layers.1.";
  ExpectStored(layer.qkv, 0, prefix + "self_attn.q_proj.weight");
  ExpectStored(layer.qkv, q_size, prefix + "self_attn.k_proj.weight");
  ExpectStored(layer.qkv, q_size + kv_size, prefix + "self_attn.v_proj.weight");
  ExpectStored(layer.o, 0, prefix + "self_attn.o_proj.weight");
  ExpectStored(layer.gate_up, 4 * c.intermediate_size, kW1);
  ExpectStored(layer.gate_up, 5 * c.intermediate_size,
               prefix + "block_sparse_moe.experts.2.w3.weight");
  ExpectStored(layer.down, 4 * c.hidden_size, prefix + "block_sparse_moe.experts.4.w2.weight");
  EXPECT_EQ(layer.gate.dtype, DType::kBF16);
  EXPECT_EQ(loaded.weights.lm_head.dtype, DType::kBF16);
}

TEST_P(Fp8Weights, AreCloseToWhatWasQuantised) {
  const auto bf16 = Checkpoint::Open(kTinyMixtral);
  const LoadedShard expected = LoadShard(Config(), **bf16, false, 1, 1, 0);
  const LoadedShard loaded = LoadShard(Config(), *Source(), false, 1, 1, 0);
  const int64_t hidden = Config().hidden_size;
  const int64_t count = 2 * Config().intermediate_size * 5 * hidden;
  double error = 0, total = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float value = At(expected.weights.layers[0].gate_up, i, hidden);
    const float got = At(loaded.weights.layers[0].gate_up, i, hidden);
    error += (got - value) * (got - value);
    total += value * value;
  }
  EXPECT_LT(std::sqrt(error / total), 0.04);  // 3 mantissa bits: a step of 1/8, uniform error 1/28
}

TEST_P(Fp8Weights, ShardsAreCutFromTheWhole) {
  ExpectShardsAreCutFromTheWhole(Config(), *Source(), false, 3, 1);
  ExpectShardsAreCutFromTheWhole(Config(), *Source(), false, 1, 3);
}

TEST_P(Fp8Weights, QuantizingOnLoadDoesNotTouchWhatIsFp8) {
  const LoadedShard loaded = LoadShard(Config(), *Source(), true, 1, 1, 0);
  ExpectStored(loaded.weights.layers[1].gate_up, 4 * Config().intermediate_size, kW1);
}

TEST_P(Fp8Weights, CarryTheKvCachesScales) {
  const LoadedShard loaded = LoadShard(Config(), *Source(), false, 3, 1, 2);
  for (int layer : {0, 1}) {
    const LayerWeights& w = loaded.weights.layers[layer];
    ASSERT_NE(w.k_scale, nullptr);
    ASSERT_NE(w.v_scale, nullptr);
    EXPECT_EQ(w.k_scale[0], testing::kFirstKvScale * (layer + 1));
    EXPECT_EQ(w.v_scale[0], testing::kFirstKvScale * (layer + 1) * 2);
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, Fp8Weights,
                         ::testing::Values(Fp8Layout::kAutoFp8, Fp8Layout::kCompressedTensors,
                                           Fp8Layout::kModelOpt));

TEST(QuantizedOnLoad, RowsAreQuantisedAsTheDefinitionSays) {
  const auto config = LoadModelConfig(kTinyMixtral);
  const auto source = Checkpoint::Open(kTinyMixtral);
  const LoadedShard wide = LoadShard(*config, **source, false, 1, 1, 0);
  const LoadedShard fp8 = LoadShard(*config, **source, true, 1, 1, 0);
  const Weight &from = wide.weights.layers[0].down, &to = fp8.weights.layers[0].down;
  ASSERT_EQ(to.dtype, DType::kF8E4M3);
  const int64_t cols = config->intermediate_size;
  for (int64_t row = 0; row < 5 * config->hidden_size; ++row) {
    std::vector<float> values(cols);
    for (int64_t i = 0; i < cols; ++i) values[i] = At(from, row * cols + i, cols);
    std::vector<uint8_t> elements(cols);
    float scale = 0;
    cpu::QuantizeWeights({.x = values.data(),
                          .out = elements.data(),
                          .scale = &scale,
                          .num_rows = 1,
                          .size = static_cast<int>(cols)});
    ASSERT_EQ(to.scale[row], scale);
    ASSERT_EQ(std::memcmp(static_cast<const uint8_t*>(to.data) + row * cols, elements.data(), cols),
              0);
  }
  EXPECT_EQ(fp8.weights.embedding.dtype, DType::kBF16);
  EXPECT_EQ(fp8.weights.layers[0].gate.dtype, DType::kBF16);
  EXPECT_EQ(fp8.weights.layers[0].input_norm.dtype, DType::kF32);
  EXPECT_EQ(fp8.weights.layers[0].k_scale, nullptr);
}

// Columns too: a row's scale is the whole row's.
TEST(QuantizedOnLoad, ShardsAreCutFromTheWhole) {
  const auto config = LoadModelConfig(kTinyMixtral);
  const auto source = Checkpoint::Open(kTinyMixtral);
  ExpectShardsAreCutFromTheWhole(*config, **source, true, 3, 1);
}

// tools/quantize_checkpoint.py computes what loading computes, but for rows where two scales come out
// equally good. The distribution's Python, for which tools/setup.sh installs numpy.
TEST(QuantizedOnLoad, EqualsTheFolderThatTheToolWrites) {
  const testing::TempFolder folder;
  const std::string out = folder.File("fp8");
  ASSERT_EQ(std::system(absl::StrCat("/usr/bin/python3 tools/quantize_checkpoint.py ", kTinyMixtral,
                                     " ", out, " --scales channel >/dev/null")
                            .c_str()),
            0);
  const auto config = LoadModelConfig(out);
  ASSERT_TRUE(config.ok()) << config.status();
  const auto bf16 = Checkpoint::Open(kTinyMixtral), written = Checkpoint::Open(out);
  ASSERT_TRUE(written.ok()) << written.status();
  const LoadedShard want = LoadShard(*config, **bf16, true, 1, 1, 0);
  const LoadedShard got = LoadShard(*config, **written, false, 1, 1, 0);
  const int64_t hidden = config->hidden_size, inter = config->intermediate_size;
  for (int layer = 0; layer < config->num_hidden_layers; ++layer) {
    const LayerWeights &a = got.weights.layers[layer], &b = want.weights.layers[layer];
    const auto expect_same = [](const Weight& x, const Weight& y, int64_t rows, int64_t cols) {
      ASSERT_EQ(x.dtype, DType::kF8E4M3);
      int64_t num_same = 0;
      for (int64_t row = 0; row < rows; ++row) {
        const auto* a_row = static_cast<const uint8_t*>(x.data) + row * cols;
        const auto* b_row = static_cast<const uint8_t*>(y.data) + row * cols;
        num_same += x.scale[row] == y.scale[row] && std::memcmp(a_row, b_row, cols) == 0;
      }
      EXPECT_GE(num_same, rows * 99 / 100) << "of " << rows;
    };
    expect_same(a.o, b.o, hidden, config->num_attention_heads * config->head_dim);
    expect_same(a.gate_up, b.gate_up, config->num_local_experts * 2 * inter, hidden);
    expect_same(a.down, b.down, config->num_local_experts * hidden, inter);
  }
}

// What a folder with these tensors is refused with.
std::string ErrorOf(const std::map<std::string, testing::TestTensor>& tensors, bool quantize) {
  const testing::TempFolder folder;
  testing::WriteTensors(tensors, folder);
  const auto config = LoadModelConfig(kTinyMixtral);
  const auto source = Checkpoint::Open(folder.path());
  EXPECT_TRUE(source.ok()) << source.status();
  const auto bytes = WeightBytes(*config, *MakeShard(*config, 1, 1, 0), **source, quantize, true);
  return std::string(bytes.status().message());
}

TEST(Fp8Checkpoint, RefusesToMultiplyFp8AndBf16AsOne) {
  auto tensors = testing::ReadTensors(kTinyMixtral);
  tensors[kW1] = {"F8_E4M3", {80, 96}, std::string(80 * 96, 'a')};
  tensors[std::string(kW1) + "_scale"] = testing::F32Tensor({}, {1});
  EXPECT_THAT(ErrorOf(tensors, false),
              AllOf(HasSubstr("experts.2.w1.weight' is F8_E4M3 and"), HasSubstr("is bf16"),
                    HasSubstr("--quantization=fp8")));
  EXPECT_EQ(ErrorOf(tensors, true), "");
}

TEST(Fp8Checkpoint, RefusesAnFp8Head) {
  auto tensors = testing::ReadTensors(kTinyMixtral);
  tensors["lm_head.weight"] = {"F8_E4M3", {259, 96}, std::string(259 * 96, 'a')};
  tensors["lm_head.weight_scale"] = testing::F32Tensor({}, {1});
  EXPECT_THAT(ErrorOf(tensors, true), HasSubstr("tensor 'lm_head.weight' is F8_E4M3, which is"));
}

TEST(Fp8Checkpoint, NamesABadKvScale) {
  auto tensors = testing::ReadTensors(kTinyMixtral);
  tensors["model.layers.1.self_attn.v_scale"] = testing::F32Tensor({1}, {-1});
  EXPECT_THAT(ErrorOf(tensors, false), HasSubstr("'model.layers.1.self_attn.v_scale' is -1 at 0"));
}

}  // namespace
}  // namespace bough
