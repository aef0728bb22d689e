// The decoder-only transformer on one rank: a batch in, logits out. Every rank runs the same batch
// on its shard; they meet in two all-reduces a layer and in the gathering of logits.
#pragma once

#include <optional>

#include "worker/comm/communicator.h"
#include "worker/kv_cache.h"
#include "worker/model/activations.h"
#include "worker/model/attention_layer.h"
#include "worker/model/device_batch.h"
#include "worker/model/device_buffer.h"
#include "worker/model/mlp_layer.h"
#include "worker/model/model_config.h"
#include "worker/model/moe_layer.h"
#include "worker/model/shard.h"
#include "worker/model/weights.h"

namespace bough {

struct DecoderLimits {
  int max_num_tokens = 0;       // of a batch
  int max_num_logits_rows = 0;  // Batch::logits_tokens of a batch, and its decode rows
};

// Called only from the thread that runs batches. Allocates its scratch when made, nothing
// afterwards.
class Decoder {
 public:
  // `device`, `weights`, `cache` and `comm` outlive it. `cache` may still be empty.
  Decoder(const ModelConfig& config, const Shard& shard, const DecoderLimits& limits,
          const AttentionOptions& attention, Device* device, const Weights* weights, KvCache* cache,
          Communicator* comm);

  // Puts the batch on the stream. `sampled`: tokens of the step before, for the batch's negative
  // ids; on the device. Rank 0: [num_logits_rows, vocab_size] f32 on the device, valid until the
  // next call. Other ranks: nullptr.
  const float* Forward(const DeviceBatch& batch, const int32_t* sampled);

  // Whether Forward puts the same kind of launches on the stream for both: a graph recorded of one
  // (padded) serves the other.
  bool Bifurcates(const DeviceBatch& batch) const { return attention_.Bifurcates(batch); }

 private:
  // What the next norm adds to the residual: rows of delta_, or experts' rows still to be combined.
  enum class Delta { kNone, kRows, kExperts };

  AddRmsNormParams Norm(int num_tokens, Delta delta, const Weight& weight,
                        const Weight& next) const;
  Delta Attend(const DeviceBatch& batch, int layer, Delta delta);
  Delta FeedForward(int num_tokens, int layer);
  void SumOverRanks(int num_tokens);
  const void* LastNorm(const DeviceBatch& batch, Delta delta);
  void GatherRows(const DeviceBuffer& rows, const DeviceBatch& batch, const DeviceBuffer& out);
  const float* Logits(int num_rows, const void* x);

  const ModelConfig config_;
  const Shard shard_;
  const DecoderLimits limits_;
  Device* const device_;
  const DType dtype_;  // of activations
  const Weights* const weights_;
  KvCache* const cache_;
  Communicator* const comm_;
  Products products_;
  AttentionLayer attention_;
  std::optional<MoeLayer> moe_;  // or
  std::optional<MlpLayer> mlp_;

  DeviceBuffer residual_;  // [max_num_tokens, hidden_size], the stream that layers add to
  ProductInput normed_;    // [max_num_tokens, hidden_size], a layer's input
  DeviceBuffer delta_;     // [max_num_tokens, hidden_size], a layer's output
  // The rows whose logits are asked for.
  DeviceBuffer last_residual_, last_delta_, last_normed_;  // [max_num_logits_rows, hidden_size]
  DeviceBuffer vocab_part_;            // [max_num_logits_rows, widest part of the vocabulary] f32
  DeviceBuffer vocab_parts_, logits_;  // rank 0: all parts; [max_num_logits_rows, vocab_size]
};

}  // namespace bough
