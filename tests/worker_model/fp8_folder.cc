#include "tests/worker_model/fp8_folder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "kernels/dtype.h"
#include "worker/model/safetensors.h"

namespace bough::testing {
namespace {

using Json = nlohmann::json;

bool IsLinear(const std::string& name) {
  return absl::StrContains(name, "_proj.weight") || absl::StrContains(name, ".experts.");
}

std::string F32Bytes(float value) { return F32Tensor({}, {value}).bytes; }

std::string BF16Bytes(float value) {
  const uint16_t bits = FloatToBF16(value);
  return std::string(reinterpret_cast<const char*>(&bits), sizeof(bits));
}

// A bf16 matrix to e4m3 in groups of `rows_per_scale` rows; appends each group's scale to `scales`.
TestTensor Quantized(const TestTensor& tensor, int64_t rows_per_scale, bool bf16_scales,
                     std::string* scales) {
  CHECK_EQ(tensor.dtype, "BF16");
  const auto* bits = reinterpret_cast<const uint16_t*>(tensor.bytes.data());
  TestTensor out = {"F8_E4M3", tensor.shape, std::string(tensor.bytes.size() / 2, '\0')};
  const int64_t group = rows_per_scale * tensor.shape[1];
  for (size_t first = 0; first < out.bytes.size(); first += group) {
    float amax = 0;
    for (int64_t i = 0; i < group; ++i)
      amax = std::max(amax, std::abs(BF16ToFloat(bits[first + i])));
    float scale = amax / kMaxE4M3;
    if (bf16_scales) scale = BF16ToFloat(FloatToBF16(scale));
    *scales += bf16_scales ? BF16Bytes(scale) : F32Bytes(scale);
    for (int64_t i = 0; i < group; ++i) {
      out.bytes[first + i] = static_cast<char>(FloatToE4M3(BF16ToFloat(bits[first + i]) / scale));
    }
  }
  return out;
}

Json QuantizationConfig(Fp8Layout layout) {
  if (layout == Fp8Layout::kAutoFp8) {
    return Json::parse(R"({"quant_method": "fp8", "activation_scheme": "static",
        "ignored_layers": ["lm_head"], "kv_cache_scheme": "static"})");
  }
  return Json::parse(R"({"quant_method": "compressed-tensors", "format": "float-quantized",
      "quantization_status": "compressed", "ignore": ["lm_head", "re:.*gate$"],
      "config_groups": {"group_0": {"targets": ["Linear"], "output_activations": null,
        "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": true,
                    "dynamic": false, "group_size": null, "block_structure": null},
        "input_activations": {"num_bits": 8, "type": "float", "strategy": "token",
                              "symmetric": true, "dynamic": true}}},
      "kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor",
                          "dynamic": false, "symmetric": true}})");
}

void AddKvScales(Fp8Layout layout, int num_layers, std::map<std::string, TestTensor>* tensors) {
  for (int l = 0; l < num_layers; ++l) {
    for (const char* letter : {"k", "v"}) {
      const std::string attention = absl::StrCat("model.layers.", l, ".self_attn.");
      const std::string name =
          layout == Fp8Layout::kAutoFp8    ? absl::StrCat(letter, "_proj.output_scale")
          : layout == Fp8Layout::kModelOpt ? absl::StrCat(letter, "_proj.", letter, "_scale")
                                           : absl::StrCat(letter, "_scale");
      const float scale = kFirstKvScale * (l + 1) * (*letter == 'v' ? 2 : 1);
      (*tensors)[attention + name] = {"F32", {1}, F32Bytes(scale)};
    }
  }
}

}  // namespace

std::map<std::string, TestTensor> ReadTensors(const std::string& model_dir) {
  const std::string file = ReadFile(model_dir + "/model.safetensors");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  const Json header = Json::parse(file.substr(sizeof(header_bytes), header_bytes));
  const std::string data = file.substr(sizeof(header_bytes) + header_bytes);
  std::map<std::string, TestTensor> tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    const size_t begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
    tensors[name] = {entry["dtype"], entry["shape"], data.substr(begin, end - begin)};
  }
  return tensors;
}

void WriteTensors(const std::map<std::string, TestTensor>& tensors, const TempFolder& folder) {
  folder.Write("model.safetensors", SafetensorsBytes(tensors));
}

void WriteFp8Folder(const std::string& model_dir, Fp8Layout layout, const TempFolder& folder) {
  Json config = Json::parse(ReadFile(model_dir + "/config.json"));
  std::map<std::string, TestTensor> tensors;
  for (const auto& [name, tensor] : ReadTensors(model_dir)) {
    if (!IsLinear(name)) {
      tensors[name] = tensor;
      continue;
    }
    const bool per_channel = layout == Fp8Layout::kCompressedTensors;
    TestTensor scale = {per_channel ? "BF16" : "F32", {}, ""};
    if (per_channel) scale.shape = {tensor.shape[0], 1};
    if (layout == Fp8Layout::kModelOpt) scale.shape = {1};
    tensors[name] = Quantized(tensor, per_channel ? 1 : tensor.shape[0], per_channel, &scale.bytes);
    tensors[name + "_scale"] = scale;
    if (per_channel) continue;
    const std::string layer = name.substr(0, name.size() - std::strlen("weight"));
    tensors[layer + "input_scale"] = {"F32", {}, F32Bytes(0.02f)};
  }
  AddKvScales(layout, config["num_hidden_layers"], &tensors);
  if (layout == Fp8Layout::kModelOpt) {
    folder.Write("hf_quant_config.json", R"({"producer": {"name": "modelopt"}, "quantization": {
        "quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}})");
  } else {
    config["quantization_config"] = QuantizationConfig(layout);
  }
  folder.Write("config.json", config.dump());
  WriteTensors(tensors, folder);
}

}  // namespace bough::testing
