// bough-worker: one rank of a group. All ranks start here; rank 0 talks to routers and runs the
// engine, the others follow its batches.

#include <grpc/support/log.h>
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/status_macros.h"
#include "kernels/cpu/parallel.h"
#include "worker/clock.h"
#include "worker/comm/mpi_group.h"
#include "worker/config.h"
#include "worker/engine.h"
#include "worker/engine_loop.h"
#include "worker/load_display.h"
#include "worker/memory_plan.h"
#include "worker/model_runner.h"
#include "worker/server.h"
#include "worker/signals.h"
#include "worker/worker_metrics.h"

namespace bough {
namespace {

// Time for routers to take what was written before the port closes.
constexpr absl::Duration kCloseGrace = absl::Seconds(1);

int ThreadsPerRank(const Config& config, int num_ranks) {
  if (config.threads > 0) return config.threads;
  cpu_set_t cpus;
  const int num_cores =
      sched_getaffinity(0, sizeof(cpus), &cpus) == 0 ? CPU_COUNT(&cpus) : num_ranks;
  return std::max(1, num_cores / num_ranks);
}

// gRPC's own lines become ours, and only where someone looks for them.
void RouteGrpcLog() {
  gpr_set_log_function([](gpr_log_func_args* line) {
    Log(LogLevel::kDebug, "grpc", {{"text", line->message}, {"file", line->file}});
  });
}

ModelRunnerOptions RunnerOptions(const Config& config) {
  return {.model_dir = config.model,
          .device = config.device,
          .quantization = config.quantization,
          .kv_cache_dtype = config.kv_cache_dtype,
          .load_format = config.load_format,
          .tp_size = config.tp_size,
          .ep_size = config.ep_size,
          .num_experts_per_tok = config.num_experts_per_tok,
          .max_model_len = config.max_model_len,
          .kv_cache_memory_bytes = config.kv_cache_memory_bytes,
          .gpu_memory_utilization = config.gpu_memory_utilization,
          .enforce_eager = config.enforce_eager,
          .max_num_batched_tokens = config.max_num_batched_tokens,
          .max_num_seqs = config.max_num_seqs,
          .enable_bifurcated_attention = config.enable_bifurcated_attention,
          .enable_fp8_attention = config.enable_fp8_attention};
}

EngineConfig MakeEngineConfig(const Config& config, const ModelRunner& runner) {
  EngineConfig engine = EngineConfigFor(runner);
  engine.enable_prefix_caching = config.enable_prefix_caching;
  engine.max_num_seqs = config.max_num_seqs;
  engine.max_num_batched_tokens = config.max_num_batched_tokens;
  engine.max_waiting = config.max_waiting;
  engine.clock = MonotonicNow;
  return engine;
}

// What is known before the model is. A restarted group is a new epoch.
group::v1::Hello FirstHello(const Config& config) {
  group::v1::Hello hello;
  hello.set_group(config.group);
  hello.set_epoch(static_cast<uint64_t>(absl::ToUnixNanos(absl::Now())));
  hello.set_device(config.device);
  hello.set_tp_size(config.tp_size);
  hello.set_ep_size(config.ep_size);
  hello.set_block_size(kBlockSize);
  return hello;
}

group::v1::Hello FullHello(group::v1::Hello hello, const ModelRunner& runner,
                           const EngineConfig& engine) {
  const ModelConfig& model = runner.config();
  hello.set_model_key(engine.model_key);
  hello.set_total_blocks(engine.num_blocks);
  hello.set_architecture(model.architecture);
  hello.set_num_local_experts(model.num_local_experts);
  hello.set_num_experts_per_tok(model.num_experts_per_tok);
  group::v1::Limits* limits = hello.mutable_limits();
  limits->set_vocab_size(engine.limits.vocab_size);
  limits->set_max_model_len(engine.limits.max_model_len);
  limits->set_max_n(engine.limits.max_n);
  limits->set_bos_token_id(engine.limits.bos_token_id);
  limits->set_eos_token_id(engine.limits.eos_token_id);
  limits->set_max_num_seqs(engine.max_num_seqs);
  return hello;
}

// One rank of the group, from flags to exit.
class Rank {
 public:
  Rank(const Config& config, MpiGroup* group, absl::Time start)
      : config_(config),
        group_(group),
        start_(start),
        metrics_(&registry_, group->rank()),
        display_(config.group, isatty(STDERR_FILENO), start) {}

  absl::Status Run() {
    ASSIGN_OR_RETURN(const MemoryPlan plan, Plan());
    if (config_.check && leads()) std::fputs(MemoryPlanText(plan, config_).c_str(), stdout);
    RETURN_IF_ERROR(CheckFits(plan, config_));
    if (config_.check) return absl::OkStatus();
    RETURN_IF_ERROR(group_->Agree(OpenPorts()));
    std::optional<StopSignals> signals;
    if (leads()) signals.emplace([this](int) { OnSignal(); });
    ASSIGN_OR_RETURN(const std::unique_ptr<ModelRunner> runner, Load());
    metrics_.SetUp(true);
    if (!leads()) {
      runner->Follow();
    } else {
      ServeRouters(runner.get());
      runner->Shutdown();
    }
    return absl::OkStatus();
  }

 private:
  bool leads() const { return group_->rank() == 0; }

  // Before the model is read, so that routers and Prometheus see how far it is.
  absl::Status OpenPorts() {
    if (config_.metrics_port != 0) {
      const std::string address =
          absl::StrCat(config_.metrics_host, ":", config_.metrics_port + group_->rank());
      RETURN_IF_ERROR(registry_.Serve(address).status());
    }
    if (!leads()) return absl::OkStatus();
    server_ = std::make_unique<GroupServer>(hello_, MonotonicNow);
    return server_->Start(config_.listen).status();
  }

  absl::StatusOr<std::unique_ptr<ModelRunner>> Load() {
    auto runner = ModelRunner::Load(RunnerOptions(config_), group_, [this](const RankProgress& p) {
      metrics_.ObserveProgress(p);
      if (!leads()) return group_->PostProgress(p);
      Show(p);
      ShowOthers();
    });
    if (leads()) display_.End();
    RETURN_IF_ERROR(runner.status());
    group_->Barrier();
    if (leads()) ShowOthers();
    metrics_.ObserveStartup("load", MonotonicNow() - start_);
    return runner;
  }

  void ShowOthers() {
    for (const RankProgress& p : group_->CollectProgress()) Show(p);
  }

  void Show(const RankProgress& progress) {
    display_.Update(progress, MonotonicNow());
    if (server_ != nullptr) server_->ReportProgress(progress);
  }

  // There is nothing to finish while the model is read: mpirun ends the other ranks.
  void OnSignal() {
    if (!serving_) std::_Exit(0);
    stop_.Ask();
    server_->Drain();
  }

  // Before anything is loaded: what cannot fit is said at once.
  absl::StatusOr<MemoryPlan> Plan() {
    ASSIGN_OR_RETURN(const GroupNeeds needs, ModelRunner::Needs(RunnerOptions(config_), group_));
    MemoryPlan plan;
    plan.device = needs.device;
    plan.block_bytes = needs.block_bytes;
    plan.max_model_len = needs.max_model_len;
    for (const RankNeeds& rank : needs.ranks) {
      plan.ranks.push_back({rank.weights, rank.scratch, needs.free_bytes, needs.total_bytes});
    }
    return PlanMemory(std::move(plan), config_);
  }

  void ServeRouters(ModelRunner* runner) {
    const EngineConfig engine_config = MakeEngineConfig(config_, *runner);
    Engine engine(engine_config, runner);
    EngineMetrics engine_metrics(&registry_, engine_config.num_blocks);
    server_->Serve(FullHello(hello_, *runner, engine_config), &engine);
    serving_ = true;
    metrics_.ObserveStartup("total", MonotonicNow() - start_);
    LogInfo("ready", {{"listen", config_.listen},
                      {"epoch", hello_.epoch()},
                      {"num_blocks", engine_config.num_blocks},
                      {"seconds", absl::ToDoubleSeconds(MonotonicNow() - start_)}});

    std::thread load_reports([this] {
      while (server_->WaitForLoadDue()) server_->PublishLoadIfDue();
    });
    RunEngine(&engine, server_.get(), &engine_metrics, stop_, config_.drain_timeout);
    server_->Shutdown(kCloseGrace);
    load_reports.join();
    metrics_.SetUp(false);
    LogInfo("stopped");
  }

  const Config& config_;
  MpiGroup* const group_;
  const absl::Time start_;
  const group::v1::Hello hello_ = FirstHello(config_);
  Metrics registry_;
  RankMetrics metrics_;
  LoadDisplay display_;                  // rank 0
  std::unique_ptr<GroupServer> server_;  // rank 0
  std::atomic<bool> serving_{false};     // rank 0
  StopRequest stop_;                     // rank 0
};

absl::Status Main(MpiGroup* group, const std::vector<std::string>& args, absl::Time start) {
  ASSIGN_OR_RETURN(const Config config, ParseConfig(args));
  if (config.help) {
    if (group->rank() == 0) std::fputs(ConfigHelp().c_str(), stdout);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(Validate(config, group->size()));
  cpu::SetNumThreads(ThreadsPerRank(config, group->size()));
  InitLog(config.log_level, {{"role", "worker"}, {"group", config.group}, {"rank", group->rank()}});
  RouteGrpcLog();
  return Rank(config, group, start).Run();
}

}  // namespace
}  // namespace bough

int main(int argc, char** argv) {
  const absl::Time start = bough::MonotonicNow();
  bough::BlockStopSignals();
  const std::unique_ptr<bough::MpiGroup> group = bough::MpiGroup::Init(&argc, &argv);
  bough::FollowMpirun(group->rank());
  const absl::Status status =
      bough::Main(group.get(), std::vector<std::string>(argv + 1, argv + argc), start);
  if (status.ok()) return 0;
  if (group->rank() == 0) {
    for (absl::string_view line : absl::StrSplit(status.message(), '\n')) {
      std::fprintf(stderr, "bough-worker: %.*s\n", static_cast<int>(line.size()), line.data());
    }
  }
  return 1;
}
