// A rank's weights, laid out as the ops want them.
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

// f8_e4m3 with a scale per row when the checkpoint stores it so or it is quantised on load. Else, on
// CUDA bf16; on the CPU bf16 when all tensors it is made of are stored so, else f32. Norms are f32
// always.
struct Weight {
  const void* data = nullptr;
  const float* scale = nullptr;  // one per row (output channel), [experts, rows]; f8_e4m3 only
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
  // [KV] f32, what the FP8 KV cache's values are to be multiplied with; nullptr: 1.
  const float *k_scale = nullptr, *v_scale = nullptr;
};

struct Weights {
  Weight embedding;  // [vocab_size, hidden_size]
  std::vector<LayerWeights> layers;
  Weight norm;                        // [hidden_size] f32
  Weight lm_head;                     // [shard.vocab, hidden_size]
  std::vector<DeviceBuffer> storage;  // what the others point into
};

// Bytes of a shard's weights on the device, from shapes alone: what LoadWeights will allocate. Fails
// as LoadWeights does.
absl::StatusOr<int64_t> WeightBytes(const ModelConfig& config, const Shard& shard,
                                    const WeightSource& source, bool quantize, bool is_cuda);

// Checks names, shapes and scales of all that the shard needs, then copies to `device`. `quantize`:
// what the checkpoint has in more bits becomes f8_e4m3, except embedding, norms, gate and lm_head.
// A row is quantised whole before a rank takes its columns, so a layout does not change a value.
// `progress(done, total)` in bytes of WeightBytes, at least every 64 MiB.
// Beside the weights it takes at most 256 MiB of pinned host memory and 64 MiB of the device.
absl::StatusOr<Weights> LoadWeights(const ModelConfig& config, const Shard& shard,
                                    const WeightSource& source, bool quantize, Device* device,
                                    const std::function<void(int64_t, int64_t)>& progress);

}  // namespace bough
