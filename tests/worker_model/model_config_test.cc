#include "worker/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/worker_model/model_folder.h"

namespace bough {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Json = nlohmann::json;

Json Mixtral() {
  return Json::parse(R"({
    "architectures": ["MixtralForCausalLM"], "vocab_size": 4096, "hidden_size": 512,
    "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 128, "num_local_experts": 8, "num_experts_per_tok": 2,
    "max_position_embeddings": 2048, "sliding_window": null, "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0, "hidden_act": "silu", "tie_word_embeddings": false})");
}

Json Llama() {
  Json json = Mixtral();
  json["architectures"] = {"LlamaForCausalLM"};
  for (const char* field : {"num_local_experts", "num_experts_per_tok", "head_dim", "rope_theta"}) {
    json.erase(field);
  }
  return json;
}

std::string ErrorOf(const Json& json) {
  const auto config = ParseModelConfig(json, "m/config.json");
  EXPECT_FALSE(config.ok()) << json;
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(config.status().message());
}

// The error after one field took another value.
std::string ErrorWith(const std::string& field, const Json& value) {
  Json json = Mixtral();
  json[field] = value;
  return ErrorOf(json);
}

TEST(ModelConfig, ReadsMixtral) {
  const auto c = ParseModelConfig(Mixtral(), "m");
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_TRUE(c->is_moe());
  EXPECT_EQ(c->head_dim, 128);
  EXPECT_EQ(c->num_key_value_heads, 2);
  EXPECT_EQ(c->num_experts_per_tok, 2);
  EXPECT_EQ(c->sliding_window, 0);
  EXPECT_EQ(c->rope_theta, 1e6f);
}

TEST(ModelConfig, DerivesWhatALlamaLeavesOut) {
  Json json = Llama();
  json.erase("num_key_value_heads");
  const auto c = ParseModelConfig(json, "m");
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_FALSE(c->is_moe());
  EXPECT_EQ(c->num_key_value_heads, 4);
  EXPECT_EQ(c->head_dim, 128);
  EXPECT_EQ(c->rope_theta, 1e4f);
}

TEST(ModelConfig, TakesRopeThetaFromRopeParameters) {
  Json json = Llama();
  json["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 5e5}};
  EXPECT_EQ(ParseModelConfig(json, "m")->rope_theta, 5e5f);
}

TEST(ModelConfig, GivesMistralItsWindowWhenTheFieldIsAbsent) {
  Json json = Llama();
  json["architectures"] = {"MistralForCausalLM"};
  EXPECT_EQ(ParseModelConfig(json, "m")->sliding_window, 0);  // null: none
  json.erase("sliding_window");
  EXPECT_EQ(ParseModelConfig(json, "m")->sliding_window, 4096);
}

TEST(ModelConfig, NamesEachMissingField) {
  for (const char* field : {"architectures", "vocab_size", "hidden_size", "intermediate_size",
                            "num_hidden_layers", "num_attention_heads", "num_local_experts",
                            "num_experts_per_tok", "max_position_embeddings", "rms_norm_eps"}) {
    Json json = Mixtral();
    json.erase(field);
    EXPECT_EQ(ErrorOf(json), std::string("m/config.json: ") + field + ": is missing");
  }
}

TEST(ModelConfig, NamesFieldLimitAndValue) {
  EXPECT_THAT(ErrorWith("num_hidden_layers", 0),
              HasSubstr("num_hidden_layers: must be an integer in [1, 1024], is 0"));
  EXPECT_THAT(ErrorWith("vocab_size", "many"), HasSubstr("is \"many\""));
  EXPECT_THAT(ErrorWith("hidden_size", 1e300), HasSubstr("hidden_size: must be an integer"));
  EXPECT_THAT(ErrorWith("head_dim", uint64_t{1} << 63), HasSubstr("is 9223372036854775808"));
  EXPECT_THAT(ErrorWith("num_experts_per_tok", 9), HasSubstr("in [1, 8], is 9"));
  EXPECT_THAT(ErrorWith("eos_token_id", 4096), HasSubstr("eos_token_id: must be an integer in"));
  EXPECT_THAT(ErrorWith("eos_token_id", {1, 2}), HasSubstr("is [1,2]"));
  EXPECT_THAT(ErrorWith("rms_norm_eps", 0), HasSubstr("must be a positive number, is 0"));
  EXPECT_THAT(ErrorWith("rope_theta", "x"), HasSubstr("must be a positive number"));
  EXPECT_THAT(ErrorWith("tie_word_embeddings", 1), HasSubstr("must be a bool"));
}

TEST(ModelConfig, RefusesContradictions) {
  EXPECT_THAT(ErrorWith("num_key_value_heads", 3),
              HasSubstr("num_key_value_heads: must divide num_attention_heads = 4, is 3"));
  EXPECT_THAT(ErrorWith("head_dim", 127), HasSubstr("head_dim: must be even"));
  Json json = Llama();
  json["hidden_size"] = 510;
  EXPECT_THAT(ErrorOf(json), HasSubstr("multiple of num_attention_heads = 4"));
}

TEST(ModelConfig, RefusesWhatIsNotServed) {
  EXPECT_THAT(ErrorWith("architectures", {"GPT2LMHeadModel"}),
              AllOf(HasSubstr("MixtralForCausalLM"), HasSubstr("GPT2LMHeadModel")));
  EXPECT_THAT(ErrorWith("rope_scaling", {{"type", "yarn"}}), HasSubstr("rope_scaling"));
  EXPECT_THAT(ErrorWith("rope_scaling", 3), HasSubstr("rope_scaling"));
  EXPECT_THAT(ErrorWith("attention_bias", true), HasSubstr("attention_bias: true is not served"));
  EXPECT_THAT(ErrorWith("hidden_act", "gelu"), HasSubstr("hidden_act: \"gelu\" is not served"));
}

// Each is an exporter's, shortened to what is read.
Json AutoFp8() { return {{"quant_method", "fp8"}, {"activation_scheme", "static"}}; }

Json CompressedTensors() {
  return Json::parse(R"({"quant_method": "compressed-tensors", "format": "float-quantized",
      "config_groups": {"group_0": {
        "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "dynamic": false},
        "input_activations": {"num_bits": 8, "type": "float", "strategy": "token"}}}})");
}

Json ModelOpt() { return {{"quant_method", "modelopt"}, {"quant_algo", "FP8"}}; }

TEST(QuantizationConfig, TakesFp8OfEachExporter) {
  for (const Json& quantization : {AutoFp8(), CompressedTensors(), ModelOpt()}) {
    Json json = Mixtral();
    json["quantization_config"] = quantization;
    const auto config = ParseModelConfig(json, "m");
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_TRUE(config->is_fp8);
  }
  EXPECT_FALSE(ParseModelConfig(Mixtral(), "m")->is_fp8);
}

// The error when `at` (a JSON pointer) of a quantization_config takes this value.
std::string QuantizationError(Json quantization, const std::string& at, const Json& value) {
  quantization[Json::json_pointer(at)] = value;
  return ErrorWith("quantization_config", quantization);
}

TEST(QuantizationConfig, RefusesTheRestByFieldAndValue) {
  const std::string where = "m/config.json: quantization_config: ";
  EXPECT_EQ(QuantizationError(AutoFp8(), "/quant_method", "awq"),
            where + "quant_method: \"awq\" is not served (only fp8, compressed-tensors, modelopt)");
  EXPECT_EQ(ErrorWith("quantization_config", Json::object()), where + "quant_method: is missing");
  EXPECT_EQ(ErrorWith("quantization_config", 8), where + "must be an object, is 8");

  EXPECT_EQ(QuantizationError(AutoFp8(), "/weight_block_size", {128, 128}),
            where + "weight_block_size: [128,128] is not served (only null)");
  EXPECT_EQ(QuantizationError(AutoFp8(), "/fmt", "e5m2"),
            where + "fmt: \"e5m2\" is not served (only \"e4m3\")");
  EXPECT_THAT(QuantizationError(AutoFp8(), "/activation_scheme", 3),
              HasSubstr("activation_scheme: 3 is not served (only static, dynamic)"));
  EXPECT_THAT(QuantizationError(AutoFp8(), "/kv_cache_scheme", "int8"),
              HasSubstr("kv_cache_scheme: must be an object"));

  const std::string group = "/config_groups/group_0/";
  EXPECT_EQ(
      QuantizationError(CompressedTensors(), group + "weights/num_bits", 4),
      where + "config_groups: group_0: weights: num_bits: must be an integer in [8, 8], is 4");
  EXPECT_THAT(QuantizationError(CompressedTensors(), group + "weights/type", "int"),
              HasSubstr("weights: type: \"int\" is not served (only float)"));
  EXPECT_THAT(QuantizationError(CompressedTensors(), group + "weights/strategy", "block"),
              HasSubstr("weights: strategy: \"block\" is not served (only tensor, channel)"));
  EXPECT_THAT(QuantizationError(CompressedTensors(), group + "weights/symmetric", false),
              HasSubstr("weights: symmetric: false is not served"));
  EXPECT_THAT(QuantizationError(CompressedTensors(), group + "input_activations", nullptr),
              HasSubstr("group_0: input_activations: is missing"));
  EXPECT_THAT(QuantizationError(CompressedTensors(), "/format", "pack-quantized"),
              HasSubstr("format: \"pack-quantized\" is not served"));
  EXPECT_THAT(QuantizationError(CompressedTensors(), "/transform_config", {{"R1", 1}}),
              HasSubstr("transform_config: {\"R1\":1} is not served"));

  EXPECT_THAT(QuantizationError(ModelOpt(), "/quant_algo", "NVFP4"),
              HasSubstr("quant_algo: \"NVFP4\" is not served (only FP8, FP8_PER_CHANNEL"));
}

TEST(QuantizationConfig, IsReadFromModelOptsOwnFile) {
  const testing::TempFolder folder;
  folder.Write("config.json", Mixtral().dump());
  const auto with = [&](const char* quantization) {
    folder.Write("hf_quant_config.json", Json{{"quantization", Json::parse(quantization)}}.dump());
    return LoadModelConfig(folder.path());
  };
  EXPECT_TRUE(with(R"({"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"})")->is_fp8);
  EXPECT_FALSE(with(R"({"quant_algo": null, "kv_cache_quant_algo": "FP8"})")->is_fp8);
  EXPECT_EQ(with(R"({"quant_algo": "W4A16_AWQ"})").status().message(),
            folder.File("hf_quant_config.json") +
                ": quantization: quant_algo: \"W4A16_AWQ\" is not served (only FP8, "
                "FP8_PER_CHANNEL_PER_TOKEN)");
}

TEST(ModelConfig, NamesAFileThatIsMissingOrBroken) {
  const testing::TempFolder folder;
  EXPECT_EQ(LoadModelConfig(folder.path()).status().code(), absl::StatusCode::kNotFound);
  folder.Write("config.json", "{\"vocab_size\": ");
  EXPECT_THAT(std::string(LoadModelConfig(folder.path()).status().message()),
              HasSubstr("config.json: is not valid JSON"));
  folder.Write("config.json", "[]");
  EXPECT_THAT(std::string(LoadModelConfig(folder.path()).status().message()),
              HasSubstr("config.json: must be a JSON object"));
}

}  // namespace
}  // namespace bough
