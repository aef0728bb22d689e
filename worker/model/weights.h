// A rank's weights, laid out as the ops want them. Names and shapes of the checkpoint's tensors are
// known here and nowhere else.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/dtype.h"
#include "worker/model/device_buffer.h"
#include "worker/model/model_config.h"
#include "worker/model/shard.h"
#include "worker/model/weight_source.h"

namespace bough {

// bf16 when all tensors it is made of are stored so, else f32. Norms are f32 always.
struct Weight {
  const void* data = nullptr;
  DType dtype = DType::kF32;
};

// H, KV = this rank's query and KV heads; E, I = its experts (1 if dense) and intermediate slice.
struct LayerWeights {
  Weight input_norm;           // [hidden_size] f32
  Weight qkv;                  // [(H + 2 KV) * head_dim, hidden_size]
  Weight o;                    // [hidden_size, H * head_dim]
  Weight post_attention_norm;  // [hidden_size] f32
  Weight gate;                 // [num_local_experts, hidden_size]; none if dense
  Weight gate_up;              // [E, 2 * I, hidden_size], gate half first
  Weight down;                 // [E, hidden_size, I]
};

struct Weights {
  Weight embedding;  // [vocab_size, hidden_size]
  std::vector<LayerWeights> layers;
  Weight norm;                        // [hidden_size] f32
  Weight lm_head;                     // [shard.vocab, hidden_size]
  std::vector<DeviceBuffer> storage;  // what the others point into
};

// Checks names and shapes of all that the shard needs, then copies. `progress(done, total)` in
// bytes, at least every 64 MiB.
absl::StatusOr<Weights> LoadWeights(const ModelConfig& config, const Shard& shard,
                                    const WeightSource& source,
                                    const std::function<void(int64_t, int64_t)>& progress);

}  // namespace bough
