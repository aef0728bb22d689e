#include "tests/worker_cuda/one_rank.h"

#include <algorithm>

#include "common/check.h"
#include "common/status_macros.h"
#include "tests/worker_cuda/int4_weights.h"
#include "worker/comm/single_rank.h"
#include "worker/model/checkpoint.h"

namespace bough::testing {

absl::StatusOr<std::unique_ptr<OneRank>> OneRank::Load(const OneRankOptions& options) {
  auto model = std::unique_ptr<OneRank>(new OneRank());
  OneRank& m = *model;
  if (options.device == "cuda") {
    ASSIGN_OR_RETURN(m.device_, OpenCudaDevice(0));
  } else {
    m.device_ = MakeCpuDevice();
  }
  m.comm_ = MakeSingleRankCommunicator();
  ASSIGN_OR_RETURN(m.config_, LoadModelConfig(options.model_dir));
  ASSIGN_OR_RETURN(const Shard shard, MakeShard(m.config_, 1, 1, 0));
  ASSIGN_OR_RETURN(std::unique_ptr<WeightSource> source, Checkpoint::Open(options.model_dir));
  if (options.int4_weights) source = std::make_unique<Int4Weights>(std::move(source));
  ASSIGN_OR_RETURN(m.weights_, LoadWeights(m.config_, shard, *source, options.fp8_weights,
                                           m.device_.get(), [](int64_t, int64_t) {}));
  const DType kv_dtype = options.fp8_kv_cache ? DType::kF8E4M3 : m.device_->activation_dtype();
  ASSIGN_OR_RETURN(
      m.cache_, KvCache::Allocate(m.config_, shard, kv_dtype, options.num_blocks, m.device_.get()));
  const DecoderLimits limits = {options.max_num_tokens, options.max_num_tokens};
  m.decoder_.emplace(m.config_, shard, limits, options.attention, m.device_.get(), &m.weights_,
                     &m.cache_, m.comm_.get());
  m.memory_.emplace(m.device_.get());
  return model;
}

std::vector<float> OneRank::Logits(const Batch& batch) {
  for (int32_t block : batch.block_tables) CHECK_LT(block, cache_.num_blocks());
  const float* const logits = decoder_->Forward(memory_->Upload(batch), nullptr);
  std::vector<float> host(batch.logits_tokens.size() * config_.vocab_size);
  device_->CopyToHost(host.data(), logits, static_cast<int64_t>(host.size() * sizeof(float)));
  device_->Synchronize();
  return host;
}

StepResult OneRank::Greedy(const Batch& batch) {
  const std::vector<float> logits = Logits(batch);
  StepResult result;
  for (auto row = logits.begin(); row != logits.end(); row += config_.vocab_size) {
    result.tokens.push_back(
        static_cast<int32_t>(std::max_element(row, row + config_.vocab_size) - row));
  }
  return result;
}

}  // namespace bough::testing
