#include "worker/model/model_config.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/model/field_reader.h"
#include "worker/model/quantization_config.h"

namespace bough {
namespace {

using Json = nlohmann::json;

std::string Architecture(const Json& json, FieldReader* in) {
  if (!in->Has("architectures")) return in->Fail("architectures", "is missing"), "";
  const Json& value = json["architectures"];
  if (value.is_array() && value.size() == 1 && value[0].is_string()) {
    for (const char* served : {"MixtralForCausalLM", "MistralForCausalLM", "LlamaForCausalLM"}) {
      if (value[0] == served) return served;
    }
  }
  in->Fail(
      "architectures",
      absl::StrCat("must be one of MixtralForCausalLM, MistralForCausalLM, LlamaForCausalLM, is ",
                   FieldReader::Text(value)));
  return "";
}

// Plain rotary embedding is served; transformers 5 keeps theta in rope_parameters.
float RopeTheta(const Json& json, const std::string& path, float if_absent, FieldReader* in) {
  for (const char* field : {"rope_scaling", "rope_parameters"}) {
    if (!in->Has(field)) continue;
    const Json& rope = json[field];
    if (!rope.is_object() ||
        rope.value("rope_type", rope.value("type", Json("default"))) != "default") {
      in->Fail(field,
               absl::StrCat(FieldReader::Text(rope), " is not served (only rope_type default)"));
      return 0;
    }
  }
  if (!in->Has("rope_theta") && in->Has("rope_parameters")) {
    FieldReader parameters(json["rope_parameters"], path);
    const float theta = parameters.Positive("rope_theta", if_absent);
    if (!parameters.status().ok()) {
      in->Fail("rope_parameters", "rope_theta must be a positive number");
    }
    return theta;
  }
  return in->Positive("rope_theta", if_absent);
}

void CheckHeads(const ModelConfig& c, bool head_dim_given, FieldReader* in) {
  if (!in->status().ok()) return;
  if (c.num_attention_heads % c.num_key_value_heads != 0) {
    in->Fail("num_key_value_heads",
             absl::StrCat("must divide num_attention_heads = ", c.num_attention_heads, ", is ",
                          c.num_key_value_heads));
  }
  if (!head_dim_given && c.hidden_size % c.num_attention_heads != 0) {
    in->Fail("hidden_size",
             absl::StrCat("must be a multiple of num_attention_heads = ", c.num_attention_heads,
                          " when head_dim is not given, is ", c.hidden_size));
  }
  if (c.head_dim % 2 != 0) {
    in->Fail("head_dim", absl::StrCat("must be even, is ", c.head_dim));
  }
}

absl::StatusOr<Json> ReadJson(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  std::stringstream text;
  text << file.rdbuf();
  Json json = Json::parse(text.str(), nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is not valid JSON"));
  }
  return json;
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(const Json& json, const std::string& path) {
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": must be a JSON object"));
  }
  FieldReader in(json, path);
  ModelConfig c;
  c.architecture = Architecture(json, &in);
  c.vocab_size = in.Int("vocab_size", 1, 1 << 24);
  c.hidden_size = in.Int("hidden_size", 1, 1 << 16);
  c.intermediate_size = in.Int("intermediate_size", 1, 1 << 20);
  c.num_hidden_layers = in.Int("num_hidden_layers", 1, 1024);
  c.num_attention_heads = in.Int("num_attention_heads", 1, 1024);
  c.num_key_value_heads = in.Int("num_key_value_heads", 1, 1024, c.num_attention_heads);
  c.head_dim = in.Int("head_dim", 2, 1024, c.hidden_size / std::max(c.num_attention_heads, 1));
  // What Hugging Face takes for an absent field depends on the architecture.
  const bool is_mixtral = c.architecture == "MixtralForCausalLM";
  const bool is_mistral = c.architecture == "MistralForCausalLM";
  if (is_mixtral) {
    c.num_local_experts = in.Int("num_local_experts", 1, 1024);
    c.num_experts_per_tok = in.Int("num_experts_per_tok", 1, std::max(c.num_local_experts, 1));
  }
  c.max_position_embeddings = in.Int("max_position_embeddings", 1, 1 << 24);
  c.sliding_window = in.Int("sliding_window", 1, 1 << 24, 0);
  if (is_mistral && !json.contains("sliding_window")) c.sliding_window = 4096;
  c.bos_token_id = in.Int("bos_token_id", 0, std::max(c.vocab_size - 1, 0), 1);
  c.eos_token_id = in.Int("eos_token_id", 0, std::max(c.vocab_size - 1, 0), 2);
  c.rms_norm_eps = in.Positive("rms_norm_eps");
  c.rope_theta = RopeTheta(json, path, is_mixtral ? 1e6f : 1e4f, &in);
  c.tie_word_embeddings = in.Bool("tie_word_embeddings");
  in.Only("hidden_act", "silu");
  in.Only("attention_bias", false);
  in.Only("mlp_bias", false);
  CheckHeads(c, in.Has("head_dim"), &in);
  RETURN_IF_ERROR(in.status());
  if (in.Has("quantization_config")) {
    ASSIGN_OR_RETURN(c.is_fp8, ParseQuantizationConfig(json["quantization_config"],
                                                       path + ": quantization_config"));
  }
  return c;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir) {
  const std::string path = model_dir + "/config.json";
  ASSIGN_OR_RETURN(const Json json, ReadJson(path));
  ASSIGN_OR_RETURN(ModelConfig config, ParseModelConfig(json, path));
  // ModelOpt's older exports say it in a file of its own.
  const std::string modelopt_path = model_dir + "/hf_quant_config.json";
  std::error_code ignored;
  if (std::filesystem::exists(modelopt_path, ignored)) {
    ASSIGN_OR_RETURN(const Json modelopt, ReadJson(modelopt_path));
    ASSIGN_OR_RETURN(const bool is_fp8, ParseHfQuantConfig(modelopt, modelopt_path));
    config.is_fp8 = config.is_fp8 || is_fp8;
  }
  return config;
}

}  // namespace bough
