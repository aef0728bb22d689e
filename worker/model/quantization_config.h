// How a Hugging Face folder says that its linear layers are stored as FP8. Served is what can be
// computed exactly from the stored numbers: e4m3 weights with one scale a tensor or one an output
// channel, as written by
//
//   quant_method          by
//   "fp8"                 AutoFP8, AMD Quark
//   "compressed-tensors"  llm-compressor: format float-quantized, 8 bits, strategy tensor or channel
//   "modelopt"            NVIDIA ModelOpt: quant_algo FP8 or FP8_PER_CHANNEL_PER_TOKEN, in config.json
//                         or in hf_quant_config.json
//
// Everything else (integers, 4 bits, scales per 128x128 block, weights alone) is refused by file,
// field and value. Lists of ignored layers are not read: each tensor's dtype says what it is.
// Activations are quantised per token with scales of their own (elementwise.h), whatever the
// activation scheme; the checkpoint's static input_scale tensors are not read.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace bough {

// The quantization_config of a config.json; `where` begins each error. True: linear layers are FP8.
absl::StatusOr<bool> ParseQuantizationConfig(const nlohmann::json& json, const std::string& where);
// ModelOpt's hf_quant_config.json. False when it quantises no weights (the KV cache alone).
absl::StatusOr<bool> ParseHfQuantConfig(const nlohmann::json& json, const std::string& where);

}  // namespace bough
