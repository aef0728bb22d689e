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
  EXPECT_THAT(ErrorWith("quantization_config", {{"quant_method", "fp8"}}),
              HasSubstr("quantization_config"));
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
