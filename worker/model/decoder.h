// The decoder-only transformer on one rank: a batch in, logits out. Every rank runs the same batch
// on its shard; they meet in two all-reduces a layer and in the gathering of logits.
#pragma once

#include <optional>

#include "worker/batch.h"
#include "worker/comm/communicator.h"
#include "worker/kv_cache.h"
#include "worker/model/attention_layer.h"
#include "worker/model/device_buffer.h"
#include "worker/model/mlp_layer.h"
#include "worker/model/model_config.h"
#include "worker/model/moe_layer.h"
#include "worker/model/shard.h"
#include "worker/model/weights.h"

namespace bough {

struct DecoderLimits {
  int max_num_tokens = 0;       // of a batch
  int max_num_logits_rows = 0;  // Batch::logits_tokens of a batch
};

// Called only from the thread that runs batches. Allocates its scratch when made, nothing
// afterwards.
class Decoder {
 public:
  // `weights`, `cache` and `comm` outlive it.
  Decoder(const ModelConfig& config, const Shard& shard, const DecoderLimits& limits,
          bool enable_bifurcated_attention, const Weights* weights, KvCache* cache,
          Communicator* comm);

  // Rank 0: [logits_tokens, vocab_size] f32, valid until the next call. Other ranks: nullptr.
  const float* Forward(const Batch& batch);

 private:
  void CheckBatch(const Batch& batch) const;
  void AddRmsNorm(int num_tokens, const float* x, float* residual, const Weight& weight,
                  float* out);
  const float* Logits(const Batch& batch);
  void MergeVocab(int num_rows);

  const ModelConfig config_;
  const Shard shard_;
  const DecoderLimits limits_;
  const Weights* const weights_;
  KvCache* const cache_;
  Communicator* const comm_;
  AttentionLayer attention_;
  std::optional<MoeLayer> moe_;  // or
  std::optional<MlpLayer> mlp_;

  DeviceBuffer residual_;  // [max_num_tokens, hidden_size], the stream that layers add to
  DeviceBuffer normed_;    // [max_num_tokens, hidden_size], a layer's input
  DeviceBuffer delta_;     // [max_num_tokens, hidden_size], a layer's output
  // The rows whose logits are asked for.
  DeviceBuffer last_residual_, last_delta_, last_normed_;  // [max_num_logits_rows, hidden_size]
  DeviceBuffer vocab_part_;            // [max_num_logits_rows, widest part of the vocabulary]
  DeviceBuffer vocab_parts_, logits_;  // rank 0: all parts; [max_num_logits_rows, vocab_size]
};

}  // namespace bough
