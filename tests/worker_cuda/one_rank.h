// A whole model on one rank of either backend, without engine and sampling: batches in, logits out.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/batch.h"
#include "worker/model/decoder.h"
#include "worker/model/device.h"

namespace bough::testing {

struct OneRankOptions {
  std::string model_dir;
  std::string device = "cpu";  // or cuda
  bool fp8_weights = false;    // and what they meet
  bool fp8_kv_cache = false;
  bool int4_weights = false;  // int4_weights.h
  AttentionOptions attention = {};
  int num_blocks = 0;
  int max_num_tokens = 512;  // of a batch, and rows of logits
};

class OneRank {
 public:
  // UNAVAILABLE where there is no such device.
  static absl::StatusOr<std::unique_ptr<OneRank>> Load(const OneRankOptions& options);

  const ModelConfig& config() const { return config_; }
  // [logits_tokens, vocab_size], in host memory.
  std::vector<float> Logits(const Batch& batch);
  // The likeliest token of each row of logits.
  StepResult Greedy(const Batch& batch);

 private:
  OneRank() = default;

  std::unique_ptr<Device> device_;
  std::unique_ptr<Communicator> comm_;
  ModelConfig config_;
  Weights weights_;
  KvCache cache_;
  std::optional<Decoder> decoder_;
  std::optional<BatchMemory> memory_;
};

}  // namespace bough::testing
