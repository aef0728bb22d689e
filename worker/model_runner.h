// Runs batches on this rank's shard of the model: weights, KV cache and scratch live here. Device
// pointers start here and nowhere above.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/batch.h"
#include "worker/comm/communicator.h"
#include "worker/comm/mpi_group.h"
#include "worker/engine.h"
#include "worker/model/model_config.h"

namespace bough {

class OpTimes;

struct ModelRunnerOptions {
  std::string model_dir;                // Hugging Face folder
  std::string device = "cpu";           // cpu or cuda
  std::string quantization = "none";    // fp8: weights of more bits become e4m3 on load
  std::string kv_cache_dtype = "auto";  // auto = the activations', fp8 = e4m3
  std::string load_format = "auto";     // auto = safetensors, dummy = seeded random weights
  int tp_size = 1;                      // MoE: slices of each expert's intermediate_size
  int ep_size = 1;                      // MoE: expert groups; attention is split over tp * ep ranks
  int num_experts_per_tok = 0;          // 0 = the config's
  int max_model_len = 0;                // 0 = the config's max_position_embeddings
  int64_t kv_cache_memory_bytes = 0;    // per rank, K and V of all layers; 0 = what is left
  double gpu_memory_utilization = 0.9;  // of a GPU's memory, for all that this rank needs
  bool enforce_eager = false;           // true: no CUDA graphs
  int max_num_batched_tokens = 2048;
  int max_num_seqs = 256;
  bool enable_bifurcated_attention = true;  // false: same tokens, more bytes read
  bool enable_fp8_attention = false;        // e4m3 products over an fp8 cache, on CUDA
  OpTimes* op_times = nullptr;  // times every op (worker/model/op_times.h); outlives the runner
};

// What a rank would need and has, in bytes, before anything is loaded.
struct RankNeeds {
  int64_t weights = 0;
  int64_t scratch = 0;  // activations, workspaces, and a reserve for graphs and NCCL
};

struct GroupNeeds {
  std::vector<RankNeeds> ranks;  // by rank
  int64_t block_bytes = 0;       // of one KV block on a rank
  int max_model_len = 0;
  std::string device;                       // as its maker calls it
  int64_t free_bytes = 0, total_bytes = 0;  // of the poorest rank's device; 0 on the CPU
};

class ModelRunner : public StepExecutor {
 public:
  // For the memory plan: reads config and headers, allocates nothing. Every rank calls it at the same
  // time; errors are those that Load would give for options and checkpoint.
  static absl::StatusOr<GroupNeeds> Needs(const ModelRunnerOptions& options, MpiGroup* group);

  // Every rank calls it at the same time. Errors name the file and what is wrong with it, and are the
  // same on all ranks. `progress` is called from the loading thread, at least every 64 MiB.
  static absl::StatusOr<std::unique_ptr<ModelRunner>> Load(
      const ModelRunnerOptions& options, MpiGroup* group,
      const std::function<void(const RankProgress&)>& progress);
  ~ModelRunner() override;

  const ModelConfig& config() const;
  bool is_cuda() const;
  int num_blocks() const;          // the same on all ranks: the smallest of what fits
  int64_t kv_block_bytes() const;  // one block on this rank, K and V of all layers
  int max_model_len() const;
  // Identifies weights and precision for the block hashes: folder name, shapes and a fingerprint of the
  // checkpoint's headers. Equal for equal folders whatever the parallel layout.
  const std::string& model_key() const;

  // Rank 0. Launch sends the batch to the followers too.
  void Launch(const Batch& batch) override;
  StepResult Wait() override;
  int max_steps_in_flight() const override;
  // Ranks > 0: executes batches until one says shutdown.
  void Follow();
  // Rank 0: lets the followers go.
  void Shutdown();

 private:
  ModelRunner();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The engine's config as far as the model decides it: key, limits, KV blocks.
EngineConfig EngineConfigFor(const ModelRunner& runner);

}  // namespace bough
