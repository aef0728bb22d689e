#include "worker/model/quantization_config.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/model/field_reader.h"

namespace bough {
namespace {

using Json = nlohmann::json;

absl::Status CheckIsObject(const Json& json, const std::string& where) {
  if (json.is_object()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(where, ": must be an object, is ", FieldReader::Text(json)));
}

// One tensor kind of compressed-tensors: {"num_bits": 8, "type": "float", "strategy": ...}.
absl::Status CheckScheme(const Json& json, const std::vector<std::string>& strategies,
                         const std::string& where) {
  RETURN_IF_ERROR(CheckIsObject(json, where));
  FieldReader in(json, where);
  in.Int("num_bits", 8, 8);
  in.OneOf("type", {"float"});
  if (in.Has("strategy")) in.OneOf("strategy", strategies);
  in.Only("symmetric", true);
  in.Only("group_size", nullptr);
  in.Only("block_structure", nullptr);
  return in.status();
}

// "static", or a scheme; the scales themselves are tensors.
absl::Status CheckKvCacheScheme(const Json& json, const std::string& where) {
  if (json.is_null() || json == "static") return absl::OkStatus();
  RETURN_IF_ERROR(CheckScheme(json, {"tensor"}, where));
  FieldReader in(json, where);
  in.Only("dynamic", false);
  return in.status();
}

absl::Status CheckAutoFp8(const Json& json, const std::string& where) {
  FieldReader in(json, where);
  in.OneOf("activation_scheme", {"static", "dynamic"});
  in.Only("fmt", "e4m3");
  in.Only("weight_block_size", nullptr);
  return in.status();
}

absl::Status CheckGroup(const Json& json, const std::string& where) {
  RETURN_IF_ERROR(CheckIsObject(json, where));
  FieldReader in(json, where);
  in.Only("format", "float-quantized");
  in.Only("output_activations", nullptr);
  for (const char* field : {"weights", "input_activations"}) {
    if (!in.Has(field)) in.Fail(field, "is missing (weights and activations must both be FP8)");
  }
  RETURN_IF_ERROR(in.status());
  const std::string weights = where + ": weights";
  RETURN_IF_ERROR(CheckScheme(json["weights"], {"tensor", "channel"}, weights));
  FieldReader of_weights(json["weights"], weights);
  of_weights.OneOf("strategy", {"tensor", "channel"});
  of_weights.Only("dynamic", false);
  RETURN_IF_ERROR(of_weights.status());
  return CheckScheme(json["input_activations"], {"tensor", "token"}, where + ": input_activations");
}

absl::Status CheckCompressedTensors(const Json& json, const std::string& where) {
  FieldReader in(json, where);
  in.OneOf("format", {"float-quantized"});
  for (const char* field : {"sparsity_config", "transform_config"}) {
    if (in.Has(field) && !json[field].empty()) in.Only(field, Json::object());
  }
  if (!in.Has("config_groups")) in.Fail("config_groups", "is missing");
  RETURN_IF_ERROR(in.status());
  const std::string groups = where + ": config_groups";
  RETURN_IF_ERROR(CheckIsObject(json["config_groups"], groups));
  for (const auto& [name, group] : json["config_groups"].items()) {
    RETURN_IF_ERROR(CheckGroup(group, absl::StrCat(groups, ": ", name)));
  }
  return absl::OkStatus();
}

absl::Status CheckModelOpt(const Json& json, const std::string& where) {
  FieldReader in(json, where);
  in.OneOf("quant_algo", {"FP8", "FP8_PER_CHANNEL_PER_TOKEN"});
  in.Only("kv_cache_quant_algo", "FP8");
  return in.status();
}

}  // namespace

absl::StatusOr<bool> ParseQuantizationConfig(const Json& json, const std::string& where) {
  RETURN_IF_ERROR(CheckIsObject(json, where));
  FieldReader in(json, where);
  // ModelOpt's first exports have no quant_method.
  const std::string method =
      !in.Has("quant_method") && in.Has("quant_algo")
          ? "modelopt"
          : in.OneOf("quant_method", {"fp8", "compressed-tensors", "modelopt"});
  RETURN_IF_ERROR(in.status());
  if (in.Has("kv_cache_scheme")) {
    RETURN_IF_ERROR(CheckKvCacheScheme(json["kv_cache_scheme"], where + ": kv_cache_scheme"));
  }
  if (method == "fp8") {
    RETURN_IF_ERROR(CheckAutoFp8(json, where));
  } else if (method == "compressed-tensors") {
    RETURN_IF_ERROR(CheckCompressedTensors(json, where));
  } else {
    RETURN_IF_ERROR(CheckModelOpt(json, where));
  }
  return true;
}

absl::StatusOr<bool> ParseHfQuantConfig(const Json& json, const std::string& where) {
  RETURN_IF_ERROR(CheckIsObject(json, where));
  if (!json.contains("quantization")) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": quantization: is missing"));
  }
  const Json& quantization = json["quantization"];
  const std::string section = where + ": quantization";
  RETURN_IF_ERROR(CheckIsObject(quantization, section));
  FieldReader in(quantization, section);
  if (!in.Has("quant_algo")) {
    in.Only("kv_cache_quant_algo", "FP8");
    RETURN_IF_ERROR(in.status());
    return false;
  }
  RETURN_IF_ERROR(CheckModelOpt(quantization, section));
  return true;
}

}  // namespace bough
