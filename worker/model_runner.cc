#include "worker/model_runner.h"

#include <algorithm>
#include <filesystem>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/block_hash.h"
#include "common/check.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "worker/kv_cache.h"
#include "worker/kv_memory.h"
#include "worker/model/checkpoint.h"
#include "worker/model/counting_device.h"
#include "worker/model/decoder.h"
#include "worker/model/device.h"
#include "worker/model/dummy_weights.h"
#include "worker/model/op_times.h"
#include "worker/model/shard.h"
#include "worker/model/step_runner.h"
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

absl::StatusOr<std::unique_ptr<Device>> OpenDevice(const std::string& device, int local_rank) {
  if (device == "cuda") return OpenCudaDevice(local_rank);
  if (device == "cpu") return MakeCpuDevice();
  return absl::InvalidArgumentError(absl::StrCat("--device must be cpu or cuda, is ", device));
}

absl::StatusOr<DType> KvDType(const std::string& kv_cache_dtype, const Device& device) {
  if (kv_cache_dtype == "auto") return device.activation_dtype();
  if (kv_cache_dtype == "fp8") return DType::kF8E4M3;
  return absl::InvalidArgumentError(
      absl::StrCat("--kv-cache-dtype must be auto or fp8, is ", kv_cache_dtype));
}

// Of a GPU, for CUDA graphs and NCCL.
constexpr int64_t kGraphReserve = 1ll << 30;

// What KV blocks may take: what is asked for, or on a GPU what weights and scratch have left of its
// share.
int64_t KvMemory(const ModelRunnerOptions& options, const Device& device) {
  if (options.kv_cache_memory_bytes > 0) return options.kv_cache_memory_bytes;
  if (!device.is_cuda()) return kDefaultKvBytesOnCpu;
  return DeviceAllowance(device.TotalBytes(), device.FreeBytes(), options.gpu_memory_utilization) -
         kGraphReserve;
}

// Blocks that `memory_bytes` hold; at least one.
absl::StatusOr<int> NumBlocks(int64_t memory_bytes, int64_t block_bytes) {
  const int64_t num_blocks = std::min(memory_bytes / block_bytes, kMaxKvBlocks);
  if (num_blocks < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the KV cache's memory, ", memory_bytes, " bytes, holds no block: one takes ", block_bytes,
        " bytes on this rank; see --kv-cache-memory-bytes and --gpu-memory-utilization"));
  }
  return static_cast<int>(num_blocks);
}

// See ModelRunner::model_key.
std::string ModelKey(const ModelRunnerOptions& options, const ModelConfig& config, DType kv_dtype,
                     const std::string& fingerprint) {
  std::filesystem::path dir = std::filesystem::path(options.model_dir).lexically_normal();
  if (!dir.has_filename()) dir = dir.parent_path();
  return absl::StrCat(dir.filename().string(), "/", config.architecture, "/L",
                      config.num_hidden_layers, "-h", config.hidden_size, "-v", config.vocab_size,
                      "-e", config.num_local_experts, "-k", config.num_experts_per_tok, "-w",
                      config.sliding_window, "-theta", config.rope_theta, "/", options.device,
                      "-w-", options.quantization, "-kv-", Name(kv_dtype), "/", fingerprint);
}

// A batch is our own work: what it says about itself must hold, or memory would be overwritten.
void CheckBatch(const Batch& batch, int vocab_size, int num_blocks) {
  const size_t num_tokens = batch.tokens.size(), num_seqs = batch.seqlens_kv.size();
  CHECK_EQ(batch.positions.size(), num_tokens);
  CHECK_EQ(batch.slot_mapping.size(), num_tokens);
  CHECK_EQ(batch.cu_seqlens_q.size(), num_seqs + 1);
  CHECK_EQ(batch.cu_seqlens_q.back(), batch.num_tokens());
  CHECK_EQ(batch.block_tables.size(), num_seqs * batch.max_blocks);
  CHECK_LE(batch.num_decode, batch.num_seqs());
  for (int32_t token : batch.tokens) CHECK_LT(token, vocab_size);
  for (int32_t slot : batch.slot_mapping) {
    CHECK(0 <= slot && slot < num_blocks * int64_t{kBlockSize}) << slot;
  }
  for (int32_t token : batch.logits_tokens) CHECK(0 <= token && token < batch.num_tokens());
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

AttentionOptions AttentionOf(const ModelRunnerOptions& options) {
  return {.enable_bifurcated = options.enable_bifurcated_attention,
          .enable_fp8 = options.enable_fp8_attention};
}

// Of what Connect makes.
int64_t ScratchBytes(const ModelRunnerOptions& options, const ModelConfig& config,
                     const Shard& shard, const Device& device) {
  CountingDevice counter(device.is_cuda(), &device.ops());
  const DecoderLimits limits = {options.max_num_batched_tokens, options.max_num_seqs};
  const Decoder decoder(config, shard, limits, AttentionOf(options), &counter, nullptr, nullptr,
                        nullptr);
  return counter.num_bytes() + (device.is_cuda() ? kGraphReserve : 0);
}

// What Needs says, but for the other ranks' free memory.
absl::StatusOr<GroupNeeds> NeedsOfShapes(const ModelRunnerOptions& options, const MpiGroup& group) {
  RETURN_IF_ERROR(CheckOptions(options, group.size()));
  ASSIGN_OR_RETURN(const ModelConfig config, LoadConfig(options));
  ASSIGN_OR_RETURN(const std::unique_ptr<Device> device,
                   OpenDevice(options.device, group.local_rank()));
  ASSIGN_OR_RETURN(const DType kv_dtype, KvDType(options.kv_cache_dtype, *device));
  ASSIGN_OR_RETURN(const std::unique_ptr<WeightSource> source, OpenSource(options));
  GroupNeeds needs;
  needs.max_model_len =
      options.max_model_len > 0 ? options.max_model_len : config.max_position_embeddings;
  needs.device = device->name();
  needs.free_bytes = device->FreeBytes();
  needs.total_bytes = device->TotalBytes();
  for (int rank = 0; rank < group.size(); ++rank) {
    ASSIGN_OR_RETURN(const Shard shard, MakeShard(config, options.tp_size, options.ep_size, rank));
    RankNeeds& mine = needs.ranks.emplace_back();
    ASSIGN_OR_RETURN(mine.weights, WeightBytes(config, shard, *source,
                                               options.quantization == "fp8", device->is_cuda()));
    mine.scratch = ScratchBytes(options, config, shard, *device);
    const int64_t block_bytes = KvCache::BytesPerBlock(config, shard, kv_dtype);
    needs.block_bytes = std::max(needs.block_bytes, block_bytes);
  }
  return needs;
}

}  // namespace

struct ModelRunner::Impl {
  ModelConfig config;
  int max_model_len = 0;
  std::string model_key;
  MpiGroup* group = nullptr;
  std::unique_ptr<Device> device;  // outlives all that lies on it
  std::unique_ptr<Communicator> comm;
  Shard shard;
  DType kv_dtype = DType::kF32;
  Weights weights;
  KvCache cache;
  std::optional<Decoder> decoder;
  std::optional<StepRunner> steps;
  std::vector<uint8_t> packed;

  int64_t block_bytes() const { return KvCache::BytesPerBlock(config, shard, kv_dtype); }
  // This rank's part of loading: everything that can fail without the others.
  absl::Status LoadRank(const ModelRunnerOptions& options, const Progress& progress);
  void Connect(const ModelRunnerOptions& options);
  absl::Status AllocateCache(const ModelRunnerOptions& options);
};

absl::Status ModelRunner::Impl::LoadRank(const ModelRunnerOptions& options,
                                         const Progress& progress) {
  RETURN_IF_ERROR(CheckOptions(options, group->size()));
  ASSIGN_OR_RETURN(config, LoadConfig(options));
  max_model_len =
      options.max_model_len > 0 ? options.max_model_len : config.max_position_embeddings;
  ASSIGN_OR_RETURN(shard, MakeShard(config, options.tp_size, options.ep_size, group->rank()));
  ASSIGN_OR_RETURN(device, OpenDevice(options.device, group->local_rank()));
  if (options.op_times != nullptr) options.op_times->Attach(device.get());
  ASSIGN_OR_RETURN(kv_dtype, KvDType(options.kv_cache_dtype, *device));
  if (options.kv_cache_memory_bytes > 0) {
    RETURN_IF_ERROR(NumBlocks(options.kv_cache_memory_bytes, block_bytes()).status());
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<WeightSource> source, OpenSource(options));
  model_key = ModelKey(options, config, kv_dtype, source->fingerprint());
  const bool quantize = options.quantization == "fp8";
  ASSIGN_OR_RETURN(weights, LoadWeights(config, shard, *source, quantize, device.get(),
                                        [&](int64_t done, int64_t total) {
                                          progress({group->rank(), "weights", done, total});
                                        }));
  return absl::OkStatus();
}

void ModelRunner::Impl::Connect(const ModelRunnerOptions& options) {
  comm = device->is_cuda() ? MakeCudaCommunicator(group, device->stream())
                           : MakeCpuCommunicator(group);
  const DecoderLimits limits = {options.max_num_batched_tokens, options.max_num_seqs};
  decoder.emplace(config, shard, limits, AttentionOf(options), device.get(), &weights, &cache,
                  comm.get());
  const StepRunnerOptions step_options = {
      .samples = group->rank() == 0,
      .num_ranks = group->size(),
      .vocab_size = config.vocab_size,
      .max_num_seqs = options.max_num_seqs,
      .max_blocks = (max_model_len + kBlockSize - 1) / kBlockSize};
  steps.emplace(step_options, device.get(), &*decoder, comm.get());
}

// As many blocks on every rank as the poorest one has.
absl::Status ModelRunner::Impl::AllocateCache(const ModelRunnerOptions& options) {
  const auto mine = NumBlocks(KvMemory(options, *device), block_bytes());
  RETURN_IF_ERROR(group->Agree(mine.status()));
  const int num_blocks = static_cast<int>(group->Min(*mine));
  auto allocated = KvCache::Allocate(config, shard, kv_dtype, num_blocks, device.get());
  RETURN_IF_ERROR(group->Agree(allocated.status()));
  cache = *std::move(allocated);
  if (group->rank() == 0) WarnIfCacheIsSmall(num_blocks, max_model_len);
  return absl::OkStatus();
}

ModelRunner::ModelRunner() : impl_(std::make_unique<Impl>()) {}
ModelRunner::~ModelRunner() = default;

absl::StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::Load(const ModelRunnerOptions& options,
                                                               MpiGroup* group,
                                                               const Progress& progress) {
  auto runner = std::unique_ptr<ModelRunner>(new ModelRunner());
  Impl& impl = *runner->impl_;
  impl.group = group;
  RETURN_IF_ERROR(group->Agree(impl.LoadRank(options, progress)));
  impl.Connect(options);
  RETURN_IF_ERROR(impl.AllocateCache(options));
  if (!options.enforce_eager) impl.steps->RecordGraphs();
  return runner;
}

absl::StatusOr<GroupNeeds> ModelRunner::Needs(const ModelRunnerOptions& options, MpiGroup* group) {
  auto needs = NeedsOfShapes(options, *group);
  RETURN_IF_ERROR(group->Agree(needs.status()));
  needs->free_bytes = group->Min(needs->free_bytes);
  return needs;
}

const ModelConfig& ModelRunner::config() const { return impl_->config; }
int ModelRunner::num_blocks() const { return impl_->cache.num_blocks(); }
bool ModelRunner::is_cuda() const { return impl_->device->is_cuda(); }
int64_t ModelRunner::kv_block_bytes() const { return impl_->block_bytes(); }
namespace {

// On a GPU the first shared node of a step starts a kernel more in every layer: about 6 us on an H200,
// in which it reads 24 MB.
constexpr double kForestBytes = 24e6;

ForestCosts ForestCostsOf(const ModelRunner& runner) {
  ForestCosts costs;
  const int num_layers = runner.config().num_hidden_layers;
  if (runner.is_cuda()) costs.forest = kForestBytes * num_layers / runner.kv_block_bytes();
  return costs;
}

}  // namespace

EngineConfig EngineConfigFor(const ModelRunner& runner) {
  EngineConfig engine;
  engine.model_key = runner.model_key();
  engine.limits.vocab_size = runner.config().vocab_size;
  engine.limits.max_model_len = runner.max_model_len();
  engine.limits.bos_token_id = runner.config().bos_token_id;
  engine.limits.eos_token_id = runner.config().eos_token_id;
  engine.num_blocks = runner.num_blocks();
  engine.forest_costs = ForestCostsOf(runner);
  return engine;
}

int ModelRunner::max_model_len() const { return impl_->max_model_len; }
const std::string& ModelRunner::model_key() const { return impl_->model_key; }

void ModelRunner::Launch(const Batch& batch) {
  CHECK_EQ(impl_->group->rank(), 0);
  CheckBatch(batch, impl_->config.vocab_size, impl_->cache.num_blocks());
  if (impl_->group->size() > 1) {
    Pack(batch, &impl_->packed);
    impl_->group->Send(impl_->packed);
  }
  impl_->steps->Launch(batch);
}

StepResult ModelRunner::Wait() { return impl_->steps->Wait(); }
int ModelRunner::max_steps_in_flight() const { return impl_->steps->max_steps_in_flight(); }

void ModelRunner::Follow() {
  CHECK_NE(impl_->group->rank(), 0);
  StepRunner& steps = *impl_->steps;
  Batch batch;
  for (int in_flight = 0;;) {
    if (in_flight == steps.max_steps_in_flight()) {
      steps.Wait();
      --in_flight;
    }
    Unpack(impl_->group->Receive(), &batch);
    if (batch.shutdown) return;
    steps.Launch(batch);
    ++in_flight;
  }
}

void ModelRunner::Shutdown() {
  Batch batch;
  batch.shutdown = true;
  Pack(batch, &impl_->packed);
  impl_->group->Send(impl_->packed);
}

}  // namespace bough
