#include "worker/model_runner.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/block_hash.h"
#include "common/check.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kernels/ops.h"
#include "worker/kv_cache.h"
#include "worker/model/checkpoint.h"
#include "worker/model/decoder.h"
#include "worker/model/dummy_weights.h"
#include "worker/model/shard.h"
#include "worker/model/weights.h"

namespace bough {
namespace {

using Progress = std::function<void(const RankProgress&)>;

absl::StatusOr<ModelConfig> LoadConfig(const ModelRunnerOptions& options) {
  ASSIGN_OR_RETURN(ModelConfig config, LoadModelConfig(options.model_dir));
  const int top_k = options.num_experts_per_tok;
  if (top_k != 0) {
    if (!config.is_moe()) {
      return absl::InvalidArgumentError(absl::StrCat("--num-experts-per-tok = ", top_k, ": ",
                                                     config.architecture, " has no experts"));
    }
    if (top_k < 1 || top_k > config.num_local_experts) {
      return absl::InvalidArgumentError(absl::StrCat("--num-experts-per-tok must be in [1, ",
                                                     config.num_local_experts,
                                                     "], the model's experts, is ", top_k));
    }
    config.num_experts_per_tok = top_k;
  }
  if (options.max_model_len < 0 || options.max_model_len > config.max_position_embeddings) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--max-model-len must be in [1, ", config.max_position_embeddings,
        "], the model's max_position_embeddings, or 0 for all of it, is ", options.max_model_len));
  }
  return config;
}

absl::StatusOr<std::unique_ptr<WeightSource>> OpenSource(const ModelRunnerOptions& options) {
  if (options.load_format == "dummy") return std::make_unique<DummyWeights>();
  if (options.load_format != "auto") {
    return absl::InvalidArgumentError(
        absl::StrCat("--load-format must be auto or dummy, is ", options.load_format));
  }
  return Checkpoint::Open(options.model_dir);
}

absl::Status CheckOptions(const ModelRunnerOptions& options, int num_ranks) {
  const int64_t world = int64_t{options.tp_size} * options.ep_size;
  if (world != num_ranks) {
    return absl::InvalidArgumentError(absl::StrCat("--tp-size * --ep-size = ", world,
                                                   ", but the group has ", num_ranks, " ranks"));
  }
  if (options.max_num_batched_tokens < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--max-num-batched-tokens must be at least 1, is ", options.max_num_batched_tokens));
  }
  if (options.max_num_seqs < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max-num-seqs must be at least 1, is ", options.max_num_seqs));
  }
  return absl::OkStatus();
}

// Blocks that `memory_bytes` hold; at least one.
absl::StatusOr<int> NumBlocks(int64_t memory_bytes, const ModelConfig& config, const Shard& shard) {
  const int64_t block_bytes = KvCache::BytesPerBlock(config, shard);
  // Slots are int32.
  const int64_t most = std::numeric_limits<int32_t>::max() / kBlockSize;
  const int64_t num_blocks = std::min(memory_bytes / block_bytes, most);
  if (num_blocks < 1) {
    return absl::InvalidArgumentError(absl::StrCat("--kv-cache-memory-bytes = ", memory_bytes,
                                                   " holds no block: one takes ", block_bytes,
                                                   " bytes on this rank"));
  }
  return static_cast<int>(num_blocks);
}

// See ModelRunner::model_key.
std::string ModelKey(const ModelRunnerOptions& options, const ModelConfig& config,
                     const std::string& fingerprint) {
  std::filesystem::path dir = std::filesystem::path(options.model_dir).lexically_normal();
  if (!dir.has_filename()) dir = dir.parent_path();
  return absl::StrCat(dir.filename().string(), "/", config.architecture, "/L",
                      config.num_hidden_layers, "-h", config.hidden_size, "-v", config.vocab_size,
                      "-e", config.num_local_experts, "-k", config.num_experts_per_tok, "-w",
                      config.sliding_window, "-theta", config.rope_theta, "/f32kv/", fingerprint);
}

// Warns when a sequence of full length cannot be served; shorter ones can.
void WarnIfCacheIsSmall(int num_blocks, int max_model_len) {
  const int64_t tokens = int64_t{num_blocks} * kBlockSize;
  if (tokens >= max_model_len) return;
  LogWarning(
      "the KV cache is smaller than one sequence of max_model_len; raise "
      "--kv-cache-memory-bytes or lower --max-model-len",
      {{"kv_cache_tokens", tokens}, {"max_model_len", max_model_len}});
}

}  // namespace

struct ModelRunner::Impl {
  ModelConfig config;
  int max_model_len = 0;
  std::string model_key;
  MpiGroup* group = nullptr;
  std::unique_ptr<Communicator> comm;
  Shard shard;
  Weights weights;
  KvCache cache;
  std::optional<Decoder> decoder;
  std::vector<uint8_t> packed;
  std::optional<StepResult> result;  // launched, not waited for

  // This rank's part of loading: everything that can fail without the others.
  absl::Status LoadRank(const ModelRunnerOptions& options, const Progress& progress);
  absl::Status AllocateCache(int64_t memory_bytes);
  StepResult Sample(const Batch& batch, const float* logits) const;
};

absl::Status ModelRunner::Impl::LoadRank(const ModelRunnerOptions& options,
                                         const Progress& progress) {
  RETURN_IF_ERROR(CheckOptions(options, group->size()));
  ASSIGN_OR_RETURN(config, LoadConfig(options));
  max_model_len =
      options.max_model_len > 0 ? options.max_model_len : config.max_position_embeddings;
  ASSIGN_OR_RETURN(shard, MakeShard(config, options.tp_size, options.ep_size, group->rank()));
  RETURN_IF_ERROR(NumBlocks(options.kv_cache_memory_bytes, config, shard).status());
  ASSIGN_OR_RETURN(const std::unique_ptr<WeightSource> source, OpenSource(options));
  model_key = ModelKey(options, config, source->fingerprint());
  ASSIGN_OR_RETURN(weights, LoadWeights(config, shard, *source, [&](int64_t done, int64_t total) {
                     progress({group->rank(), "weights", done, total});
                   }));
  return absl::OkStatus();
}

// As many blocks on every rank as the poorest one has.
absl::Status ModelRunner::Impl::AllocateCache(int64_t memory_bytes) {
  auto mine = NumBlocks(memory_bytes, config, shard);
  CHECK_OK(mine.status());
  const int num_blocks = static_cast<int>(group->Min(*mine));
  auto allocated = KvCache::Allocate(config, shard, num_blocks);
  RETURN_IF_ERROR(group->Agree(allocated.status()));
  cache = *std::move(allocated);
  if (group->rank() == 0) WarnIfCacheIsSmall(num_blocks, max_model_len);
  return absl::OkStatus();
}

StepResult ModelRunner::Impl::Sample(const Batch& batch, const float* logits) const {
  const size_t num_rows = batch.samples.size();
  StepResult result;
  result.tokens.resize(num_rows);
  result.logprobs.resize(num_rows);
  result.top_ids.resize(num_rows * batch.max_top);
  result.top_logprobs.resize(num_rows * batch.max_top);
  ops::Sample({.logits = logits,
               .rows = batch.samples.data(),
               .bias_ids = batch.bias_ids.data(),
               .bias_values = batch.bias_values.data(),
               .seen_ids = batch.seen_ids.data(),
               .seen_counts = batch.seen_counts.data(),
               .banned_ids = batch.banned_ids.data(),
               .tokens = result.tokens.data(),
               .logprobs = result.logprobs.data(),
               .top_ids = result.top_ids.data(),
               .top_logprobs = result.top_logprobs.data(),
               .num_rows = static_cast<int>(num_rows),
               .vocab_size = config.vocab_size,
               .max_top = batch.max_top});
  return result;
}

ModelRunner::ModelRunner() : impl_(std::make_unique<Impl>()) {}
ModelRunner::~ModelRunner() = default;

absl::StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::Load(const ModelRunnerOptions& options,
                                                               MpiGroup* group,
                                                               const Progress& progress) {
  auto runner = std::unique_ptr<ModelRunner>(new ModelRunner());
  Impl& impl = *runner->impl_;
  impl.group = group;
  impl.comm = MakeCpuCommunicator(group);
  RETURN_IF_ERROR(group->Agree(impl.LoadRank(options, progress)));
  RETURN_IF_ERROR(impl.AllocateCache(options.kv_cache_memory_bytes));
  const DecoderLimits limits = {options.max_num_batched_tokens, options.max_num_seqs};
  impl.decoder.emplace(impl.config, impl.shard, limits, options.enable_bifurcated_attention,
                       &impl.weights, &impl.cache, impl.comm.get());
  return runner;
}

const ModelConfig& ModelRunner::config() const { return impl_->config; }
int ModelRunner::num_blocks() const { return impl_->cache.num_blocks(); }
int64_t ModelRunner::kv_block_bytes() const {
  return KvCache::BytesPerBlock(impl_->config, impl_->shard);
}
int ModelRunner::max_model_len() const { return impl_->max_model_len; }
const std::string& ModelRunner::model_key() const { return impl_->model_key; }

void ModelRunner::Launch(const Batch& batch) {
  CHECK_EQ(impl_->group->rank(), 0);
  CHECK(!impl_->result.has_value()) << "the step before was not waited for";
  if (impl_->group->size() > 1) {
    Pack(batch, &impl_->packed);
    impl_->group->Send(impl_->packed);
  }
  impl_->result = impl_->Sample(batch, impl_->decoder->Forward(batch));
}

StepResult ModelRunner::Wait() {
  CHECK(impl_->result.has_value());
  return *std::exchange(impl_->result, std::nullopt);
}

void ModelRunner::Follow() {
  CHECK_NE(impl_->group->rank(), 0);
  Batch batch;
  for (;;) {
    Unpack(impl_->group->Receive(), &batch);
    if (batch.shutdown) return;
    impl_->decoder->Forward(batch);
  }
}

void ModelRunner::Shutdown() {
  Batch batch;
  batch.shutdown = true;
  Pack(batch, &impl_->packed);
  impl_->group->Send(impl_->packed);
}

}  // namespace bough
