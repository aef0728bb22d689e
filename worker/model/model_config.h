// A model's shape, from a Hugging Face config.json. Field names are the file's.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace bough {

struct ModelConfig {
  std::string architecture;  // MixtralForCausalLM, MistralForCausalLM, LlamaForCausalLM
  int vocab_size = 0, hidden_size = 0, intermediate_size = 0, num_hidden_layers = 0;
  int num_attention_heads = 0, num_key_value_heads = 0, head_dim = 0;
  int num_local_experts = 0;  // 0 = dense
  int num_experts_per_tok = 0;
  int max_position_embeddings = 0;
  int sliding_window = 0;  // 0 = none
  int bos_token_id = 1, eos_token_id = 2;
  float rms_norm_eps = 1e-5f;
  float rope_theta = 10000.0f;
  bool tie_word_embeddings = false;
  bool is_fp8 = false;  // its linear layers are stored as f8_e4m3 (quantization_config.h)

  bool is_moe() const { return num_local_experts > 0; }
};

// INVALID_ARGUMENT names the file, the field and its value: missing, of the wrong type, out of range,
// contradictory, or a feature that is not served (rope_scaling, attention_bias, other architectures,
// quantisations other than those of quantization_config.h).
absl::StatusOr<ModelConfig> ParseModelConfig(const nlohmann::json& json, const std::string& path);
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir);

}  // namespace bough
