// What one rank of a group is told on its command line. All ranks get the same line. Flags carry
// the fields' names with dashes (--max-num-seqs), which are vLLM's wherever vLLM has such a flag.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace bough {

struct Config {
  // Behaviour.
  std::string model;                    // Hugging Face folder
  std::string group;                    // name that routers and logs use
  std::string listen;                   // rank 0's host:port for routers
  std::string device = "cpu";           // cpu or cuda
  std::string load_format = "auto";     // auto = safetensors, dummy = seeded random weights
  std::string quantization = "none";    // none = as stored, fp8 = linear weights to e4m3 on load
  std::string kv_cache_dtype = "auto";  // auto = f32 on the CPU, bf16 on CUDA; fp8 = e4m3
  int32_t tp_size = 1;                  // tensor parallel ranks
  int32_t ep_size = 1;                // expert parallel ranks; tp_size * ep_size = ranks of the job
  int32_t num_experts_per_tok = 0;    // 0 = the model's; fewer trades quality for speed
  int32_t max_model_len = 0;          // prompt + answer, tokens; 0 = the model's
  bool enable_prefix_caching = true;  // keep full blocks for later requests
  absl::Duration drain_timeout = absl::Seconds(30);  // at SIGTERM, for running requests to finish

  // Performance.
  int32_t max_num_seqs = 256;  // rows a step; raise for many parallel samples
  // Tokens a step; lower bounds a decode row's wait. Not given: 2048, on a GPU 8192, which fills each
  // of 8 experts' products.
  int32_t max_num_batched_tokens = 2048;
  int32_t max_waiting = 1024;            // requests queued before new ones are refused
  double gpu_memory_utilization = 0.90;  // share of a GPU for weights, scratch and KV cache
  int64_t kv_cache_memory_bytes = 0;     // per rank; 0 = that share's rest, on the CPU 512 MiB
  bool enforce_eager = false;            // launch decode steps' kernels one by one: no CUDA graphs
  bool enable_bifurcated_attention = true;  // false = plain attention; same tokens, more bytes read
  // With kv_cache_dtype=fp8 on CUDA: queries and softmax weights become e4m3 too, so that tensor cores
  // multiply e4m3 with e4m3. Faster at long contexts and prompts, less exact; elsewhere it changes
  // nothing.
  bool enable_fp8_attention = false;
  int32_t threads = 0;  // CPU kernel threads per rank; 0 = cores / ranks, at least 1

  // Operation.
  std::string metrics_host = "127.0.0.1";
  int32_t metrics_port = 0;        // rank r serves /metrics on metrics_port + r; 0 = off
  std::string log_level = "info";  // debug, info, warning, error
  bool check = false;              // print the memory plan and exit
  bool help = false;               // print FlagsHelp and exit
};

// argv without the program's name. INVALID_ARGUMENT on an unknown flag, a value that is none of its
// type, or a positional argument.
absl::StatusOr<Config> ParseConfig(const std::vector<std::string>& args);

// One line per problem, naming flag, limit and value; OK when there is none.
absl::Status Validate(const Config& config, int num_ranks);

std::string ConfigHelp();

}  // namespace bough
