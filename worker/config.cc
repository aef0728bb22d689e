#include "worker/config.h"

#include <filesystem>

#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/flags.h"
#include "common/status_macros.h"

using bough::Config;

ABSL_FLAG(std::string, model, Config().model,
          "Folder of the model in Hugging Face's layout: config.json, *.safetensors. Required.");
ABSL_FLAG(std::string, group, Config().group, "This group's name for routers and logs. Required.");
ABSL_FLAG(std::string, listen, Config().listen,
          "host:port on which rank 0 takes routers' streams. Required, unless --check.");
ABSL_FLAG(std::string, device, Config().device, "cpu or cuda.");
ABSL_FLAG(
    std::string, load_format, Config().load_format,
    "auto: read the folder's safetensors. dummy: seeded random weights of the config's shape.");
ABSL_FLAG(
    std::string, quantization, Config().quantization,
    "none: weights as the folder stores them, FP8 ones included. fp8: linear layers stored in "
    "more bits become e4m3, one scale per output channel.");
ABSL_FLAG(std::string, kv_cache_dtype, Config().kv_cache_dtype,
          "auto: f32 on the CPU, bf16 on CUDA. fp8: e4m3, with the folder's k and v scales.");
ABSL_FLAG(int32_t, tp_size, Config().tp_size, "Tensor parallel ranks.");
ABSL_FLAG(int32_t, ep_size, Config().ep_size,
          "Expert parallel ranks. tp-size * ep-size must be the number of ranks of the MPI job.");
ABSL_FLAG(int32_t, num_experts_per_tok, Config().num_experts_per_tok,
          "Experts per token instead of the model's own number. 0 = the model's.");
ABSL_FLAG(int32_t, max_model_len, Config().max_model_len,
          "Prompt and answer together, in tokens. 0 = the model's max_position_embeddings.");
ABSL_FLAG(bool, enable_prefix_caching, Config().enable_prefix_caching,
          "Keep full KV blocks of finished requests for later ones with the same prefix.");
ABSL_FLAG(absl::Duration, drain_timeout, Config().drain_timeout,
          "How long running requests may finish after SIGTERM.");
ABSL_FLAG(int32_t, max_num_seqs, Config().max_num_seqs, "Sequences in one step.");
ABSL_FLAG(int32_t, max_num_batched_tokens, 0,
          "Tokens in one step; longer prompts are prefilled in chunks. 0 = 2048, on a GPU 8192.");
ABSL_FLAG(int32_t, max_waiting, Config().max_waiting,
          "Requests that may wait; further ones end in QUEUE_FULL.");
ABSL_FLAG(double, gpu_memory_utilization, Config().gpu_memory_utilization,
          "Share of each GPU's memory that weights, scratch and KV cache may take together.");
ABSL_FLAG(int64_t, kv_cache_memory_bytes, Config().kv_cache_memory_bytes,
          "KV cache of one rank, in bytes. 0 = what gpu-memory-utilization leaves; on the CPU 512 "
          "MiB.");
ABSL_FLAG(bool, enforce_eager, Config().enforce_eager,
          "Launch the kernels of decode steps one by one instead of as CUDA graphs.");
ABSL_FLAG(bool, enable_bifurcated_attention, Config().enable_bifurcated_attention,
          "Read a context that several sequences share once a step.");
ABSL_FLAG(
    bool, enable_fp8_attention, Config().enable_fp8_attention,
    "With --kv-cache-dtype=fp8 on a GPU: quantise queries and softmax weights to e4m3 too, so "
    "that tensor cores multiply e4m3 with e4m3. On the CPU, or with another KV cache, it "
    "changes nothing.");
ABSL_FLAG(int32_t, threads, Config().threads,
          "CPU kernel threads of one rank. 0 = cores divided by ranks, at least 1.");
ABSL_FLAG(std::string, metrics_host, Config().metrics_host, "Address of the metrics ports.");
ABSL_FLAG(int32_t, metrics_port, Config().metrics_port,
          "Rank r serves Prometheus text on this port + r. 0 = off.");
ABSL_FLAG(std::string, log_level, Config().log_level, "debug, info, warning or error.");
ABSL_FLAG(bool, check, Config().check,
          "Check the model's folder without loading it, print the memory plan and exit: 0 if it "
          "fits, else 1.");

namespace bough {
namespace {

constexpr char kThisFile[] = "worker/config.cc";

class Problems {
 public:
  template <typename... Args>
  void AddIf(bool bad, const Args&... parts) {
    if (bad) lines_.push_back(absl::StrCat(parts...));
  }
  void Range(const char* flag, int64_t value, int64_t low, int64_t high) {
    AddIf(value < low || value > high, "--", flag, ": must be in [", low, ", ", high, "], is ",
          value);
  }
  void OneOf(const char* flag, const std::string& value, const std::vector<std::string>& names) {
    for (const std::string& name : names) {
      if (value == name) return;
    }
    lines_.push_back(absl::StrCat("--", flag, ": must be one of ", absl::StrJoin(names, ", "),
                                  ", is '", value, "'"));
  }
  absl::Status ToStatus() const {
    return lines_.empty() ? absl::OkStatus()
                          : absl::InvalidArgumentError(absl::StrJoin(lines_, "\n"));
  }

 private:
  std::vector<std::string> lines_;
};

// "host:port" with a port of 1 to 65535; an IPv6 host stands in brackets.
bool IsAddress(const std::string& text) {
  const size_t colon = text.rfind(':');
  int port = 0;
  return colon != text.npos && colon > 0 && absl::SimpleAtoi(text.substr(colon + 1), &port) &&
         port >= 1 && port <= 65535;
}

}  // namespace

absl::StatusOr<Config> ParseConfig(const std::vector<std::string>& args) {
  ASSIGN_OR_RETURN(const CommandLine line, ParseFlags(args, kThisFile));
  if (!line.positional.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", line.positional[0], "': no positional arguments are taken; see --help"));
  }
  Config c;
  c.help = line.help;
  c.model = absl::GetFlag(FLAGS_model);
  c.group = absl::GetFlag(FLAGS_group);
  c.listen = absl::GetFlag(FLAGS_listen);
  c.device = absl::GetFlag(FLAGS_device);
  c.load_format = absl::GetFlag(FLAGS_load_format);
  c.quantization = absl::GetFlag(FLAGS_quantization);
  c.kv_cache_dtype = absl::GetFlag(FLAGS_kv_cache_dtype);
  c.tp_size = absl::GetFlag(FLAGS_tp_size);
  c.ep_size = absl::GetFlag(FLAGS_ep_size);
  c.num_experts_per_tok = absl::GetFlag(FLAGS_num_experts_per_tok);
  c.max_model_len = absl::GetFlag(FLAGS_max_model_len);
  c.enable_prefix_caching = absl::GetFlag(FLAGS_enable_prefix_caching);
  c.drain_timeout = absl::GetFlag(FLAGS_drain_timeout);
  c.max_num_seqs = absl::GetFlag(FLAGS_max_num_seqs);
  c.max_num_batched_tokens = absl::GetFlag(FLAGS_max_num_batched_tokens);
  if (c.max_num_batched_tokens == 0) c.max_num_batched_tokens = c.device == "cuda" ? 8192 : 2048;
  c.max_waiting = absl::GetFlag(FLAGS_max_waiting);
  c.gpu_memory_utilization = absl::GetFlag(FLAGS_gpu_memory_utilization);
  c.kv_cache_memory_bytes = absl::GetFlag(FLAGS_kv_cache_memory_bytes);
  c.enforce_eager = absl::GetFlag(FLAGS_enforce_eager);
  c.enable_bifurcated_attention = absl::GetFlag(FLAGS_enable_bifurcated_attention);
  c.enable_fp8_attention = absl::GetFlag(FLAGS_enable_fp8_attention);
  c.threads = absl::GetFlag(FLAGS_threads);
  c.metrics_host = absl::GetFlag(FLAGS_metrics_host);
  c.metrics_port = absl::GetFlag(FLAGS_metrics_port);
  c.log_level = absl::GetFlag(FLAGS_log_level);
  c.check = absl::GetFlag(FLAGS_check);
  return c;
}

absl::Status Validate(const Config& c, int num_ranks) {
  Problems p;
  p.AddIf(c.model.empty(), "--model: required, the model's folder");
  p.AddIf(!c.model.empty() && !std::filesystem::is_directory(c.model),
          "--model: must be a folder, '", c.model, "' is none");
  p.AddIf(c.group.empty() && !c.check, "--group: required, the group's name");
  p.AddIf(c.listen.empty() && !c.check, "--listen: required, rank 0's host:port");
  p.AddIf(!c.listen.empty() && !IsAddress(c.listen),
          "--listen: must be host:port with a port in [1, 65535], is '", c.listen, "'");
  p.OneOf("device", c.device, {"cpu", "cuda"});
  p.OneOf("load-format", c.load_format, {"auto", "dummy"});
  p.OneOf("quantization", c.quantization, {"none", "fp8"});
  p.OneOf("kv-cache-dtype", c.kv_cache_dtype, {"auto", "fp8"});
  p.Range("tp-size", c.tp_size, 1, 64);
  p.Range("ep-size", c.ep_size, 1, 64);
  p.AddIf(int64_t{c.tp_size} * c.ep_size != num_ranks, "--tp-size * --ep-size: must be ", num_ranks,
          ", the number of MPI ranks, is ", c.tp_size, " * ", c.ep_size);
  p.Range("num-experts-per-tok", c.num_experts_per_tok, 0, 64);
  p.Range("max-model-len", c.max_model_len, 0, 1 << 24);
  p.Range("max-num-seqs", c.max_num_seqs, 1, 1 << 16);
  p.Range("max-num-batched-tokens", c.max_num_batched_tokens, 1, 1 << 20);
  p.AddIf(c.max_num_batched_tokens < c.max_num_seqs,
          "--max-num-batched-tokens: must be at least --max-num-seqs (", c.max_num_seqs, "), is ",
          c.max_num_batched_tokens);
  p.Range("max-waiting", c.max_waiting, 1, 1 << 20);
  p.AddIf(!(c.gpu_memory_utilization > 0 && c.gpu_memory_utilization <= 1),
          "--gpu-memory-utilization: must be in (0, 1], is ", c.gpu_memory_utilization);
  if (c.kv_cache_memory_bytes != 0) {
    p.Range("kv-cache-memory-bytes", c.kv_cache_memory_bytes, 1 << 20, int64_t{1} << 44);
  }
  p.Range("threads", c.threads, 0, 1024);
  p.AddIf(c.drain_timeout < absl::ZeroDuration(), "--drain-timeout: must not be negative, is ",
          absl::FormatDuration(c.drain_timeout));
  p.AddIf(c.metrics_port != 0 && (c.metrics_port < 1 || c.metrics_port > 65536 - num_ranks),
          "--metrics-port: must be 0 or in [1, ", 65536 - num_ranks, "] for ", num_ranks,
          " ranks, is ", c.metrics_port);
  p.OneOf("log-level", c.log_level, {"debug", "info", "warning", "error"});
  return p.ToStatus();
}

std::string ConfigHelp() {
  return FlagsHelp(
      "bough-worker: one rank of a group that holds one copy of a model and runs it for routers.\n"
      "Started by mpirun, all ranks with the same flags:\n\n"
      "  tools/mpirun.sh 2 bough-worker --model=models/demo --group=g0 --listen=127.0.0.1:50061 "
      "--tp-size=2\n\n"
      "SIGTERM or SIGINT to rank 0, or SIGUSR1 to mpirun, lets running requests finish; a second "
      "one ends at once.",
      kThisFile);
}

}  // namespace bough
