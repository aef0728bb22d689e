// FP8 model folders for tests, as the three families of exporters write them.
#pragma once

#include <string>

#include "tests/worker_model/model_folder.h"

namespace bough::testing {

enum class Fp8Layout {
  kAutoFp8,            // quant_method fp8: weight_scale [] f32, input_scale, k_proj.output_scale
  kCompressedTensors,  // strategy channel: weight_scale [rows, 1] bf16, self_attn.k_scale
  kModelOpt,           // hf_quant_config.json: weight_scale [1] f32, k_proj.k_scale
};

// The bf16 folder `model_dir` (one safetensors file), its linear layers quantised.
void WriteFp8Folder(const std::string& model_dir, Fp8Layout layout, const TempFolder& folder);

// The tensors of a folder's model.safetensors, and back.
std::map<std::string, TestTensor> ReadTensors(const std::string& model_dir);
void WriteTensors(const std::map<std::string, TestTensor>& tensors, const TempFolder& folder);

// A row's scale in WriteFp8Folder's K and V: layer l has kFirstKvScale * (l + 1), V twice K's.
inline constexpr float kFirstKvScale = 0.03125f;

}  // namespace bough::testing
