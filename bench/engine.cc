// Measures the whole engine (scheduler, batch, model, sampling) without a network:
//
//   bench-engine --model=models/demo --out=bench/results/cpu/engine_demo.json
//   tools/mpirun.sh 2 bench-engine --model=models/demo --tp_size=2
//   bench-engine --device=cuda --model=bench/models/mixtral-8x7b --load_format=dummy
//     --quantization=fp8 --kv_cache_dtype=fp8 --out=bench/results/h200/engine_mixtral_fp8.json
//
// Cases (--cases) and what they mean: engine_cases.h. --scenario=bifurcated runs the founding tables
// instead: engine_bifurcated.h.
// Medians. A case's floor is max(bytes / read ceiling, FLOPs / their ceilings), where every weight
// that the step needs and every KV block is read once; that of `mixed` is a rate.
// Each case is printed, and the file written anew, as soon as it is measured.
#include <cstdio>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "bench/ceilings.h"
#include "bench/device_ceilings.h"
#include "bench/engine_bench.h"
#include "bench/engine_bifurcated.h"
#include "bench/engine_cases.h"
#include "bench/engine_cost.h"
#include "bench/results.h"
#include "common/check.h"
#include "kernels/cpu/parallel.h"
#include "worker/clock.h"
#include "worker/comm/mpi_group.h"
#include "worker/model/device.h"
#include "worker/model/op_times.h"
#include "worker/model_runner.h"

ABSL_FLAG(std::string, model, "models/demo", "Hugging Face folder");
ABSL_FLAG(std::string, device, "cpu", "as bough-worker's");
ABSL_FLAG(std::string, quantization, "none", "as bough-worker's");
ABSL_FLAG(std::string, kv_cache_dtype, "auto", "as bough-worker's");
ABSL_FLAG(std::string, load_format, "auto", "as bough-worker's");
ABSL_FLAG(double, gpu_memory_utilization, 0.93, "as bough-worker's");
ABSL_FLAG(int64_t, kv_cache_memory_bytes, 0, "as bough-worker's");
ABSL_FLAG(int, tp_size, 1, "as bough-worker's");
ABSL_FLAG(int, ep_size, 1, "as bough-worker's");
ABSL_FLAG(int, max_num_batched_tokens, 0, "as bough-worker's; 0 = 2048, on a GPU 8192");
ABSL_FLAG(int, max_num_seqs, 0, "as bough-worker's; 0 = 256, on a GPU 512 or 2048 (bifurcated)");
ABSL_FLAG(int, max_model_len, 0, "as bough-worker's");
ABSL_FLAG(bool, enable_fp8_attention, false, "as bough-worker's");
ABSL_FLAG(bool, enforce_eager, false, "no CUDA graphs");
ABSL_FLAG(int, threads, 0, "threads of the CPU's kernels per rank; 0 = cores / ranks");
ABSL_FLAG(int, context, 0, "tokens before a decode step; 0 = 64, on a GPU 1024");
ABSL_FLAG(std::string, scenario, "", "bifurcated: the founding tables; empty: engine_cases.h's");
ABSL_FLAG(std::vector<std::string>, cases, {}, "see above; empty: the device's usual ones");
ABSL_FLAG(std::string, out, "", "path of the JSON file; empty: print only");
ABSL_FLAG(std::string, git, "", "commit, where the working directory is no checkout");

namespace bough {
namespace {

constexpr int kConcurrency = 192, kTokensIn = 1024, kTokensOut = 50;  // of `mixed`

ModelRunnerOptions RunnerOptions() {
  const bool is_cuda = absl::GetFlag(FLAGS_device) == "cuda";
  const bool is_bifurcated = absl::GetFlag(FLAGS_scenario) == "bifurcated";
  ModelRunnerOptions options;
  options.model_dir = absl::GetFlag(FLAGS_model);
  options.device = absl::GetFlag(FLAGS_device);
  options.quantization = absl::GetFlag(FLAGS_quantization);
  options.kv_cache_dtype = absl::GetFlag(FLAGS_kv_cache_dtype);
  options.load_format = absl::GetFlag(FLAGS_load_format);
  options.gpu_memory_utilization = absl::GetFlag(FLAGS_gpu_memory_utilization);
  options.kv_cache_memory_bytes = absl::GetFlag(FLAGS_kv_cache_memory_bytes);
  options.tp_size = absl::GetFlag(FLAGS_tp_size);
  options.ep_size = absl::GetFlag(FLAGS_ep_size);
  options.max_num_batched_tokens = absl::GetFlag(FLAGS_max_num_batched_tokens);
  if (options.max_num_batched_tokens == 0) options.max_num_batched_tokens = is_cuda ? 8192 : 2048;
  options.max_num_seqs = absl::GetFlag(FLAGS_max_num_seqs);
  if (options.max_num_seqs == 0) options.max_num_seqs = is_bifurcated ? 2048 : is_cuda ? 512 : 256;
  options.max_model_len = absl::GetFlag(FLAGS_max_model_len);
  options.enable_fp8_attention = absl::GetFlag(FLAGS_enable_fp8_attention);
  options.enforce_eager = absl::GetFlag(FLAGS_enforce_eager);
  return options;
}

// One run of the program: what was asked for, and what came out so far.
class Run {
 public:
  Run(MpiGroup* group, std::string command) : group_(group) {
    results_.command = std::move(command);
    results_.git = absl::GetFlag(FLAGS_git);
    const ModelRunnerOptions runner = RunnerOptions();
    const int context = absl::GetFlag(FLAGS_context);
    options_ = {.max_num_seqs = runner.max_num_seqs,
                .max_num_batched_tokens = runner.max_num_batched_tokens,
                .context = context > 0 ? context
                           : is_cuda_  ? 1024
                                       : 64};
    const auto names = absl::GetFlag(FLAGS_cases);
    for (const std::string& name : names.empty() ? UsualCases(is_cuda_) : names) {
      const auto spec = ParseCase(name);
      CHECK_OK(spec.status());
      cases_.push_back(*spec);
    }
  }

  // One model at a time, as two do not fit a GPU: the cases, then plain attention for the shared
  // ones, then a model whose ops are timed.
  int Main() {
    SetThreads();
    if (leads()) DescribeMachine();
    std::vector<CaseSpec> plain, shared, ops;
    for (const CaseSpec& spec : cases_) {
      (spec.ops ? ops : plain).push_back(spec);
      if (spec.kind == "shared") shared.push_back(spec);
    }
    if (!plain.empty())
      WithModel(true, nullptr, [&](EngineBench* bench) { RunCases(plain, bench); });
    if (!shared.empty()) {
      WithModel(false, nullptr, [&](EngineBench* bench) { RunPeers(shared, bench); });
    }
    if (!ops.empty()) {
      std::set<int> sizes;
      for (const CaseSpec& spec : ops) sizes.insert(spec.size);
      OpTimes times(sizes);
      WithModel(false, &times, [&](EngineBench* bench) { RunOps(ops, times, bench); });
    }
    return write_failed_ ? 1 : 0;
  }

 private:
  bool leads() const { return group_->rank() == 0; }

  void SetThreads() {
    const int num_cores = static_cast<int>(std::thread::hardware_concurrency());
    threads_ = absl::GetFlag(FLAGS_threads);
    if (threads_ == 0) threads_ = std::max(1, num_cores / group_->size());
    cpu::SetNumThreads(threads_);
  }

  // Names the device and measures what it can do.
  void DescribeMachine() {
    const bool fp8 = absl::GetFlag(FLAGS_quantization) == "fp8";
    results_.scenario =
        absl::StrFormat("engine %s %s kv=%s tp=%d ep=%d", absl::GetFlag(FLAGS_model),
                        absl::GetFlag(FLAGS_quantization), absl::GetFlag(FLAGS_kv_cache_dtype),
                        absl::GetFlag(FLAGS_tp_size), absl::GetFlag(FLAGS_ep_size));
    if (is_cuda_) {
      const auto device = OpenCudaDevice(0);
      CHECK_OK(device.status());
      results_.device = (*device)->name();
      if (group_->size() > 1)
        results_.device = absl::StrCat(group_->size(), " x ", results_.device);
      results_.ceilings = {{"read_gbps", MeasureDeviceReadGbps()},
                           {"copy_gbps", MeasureDeviceCopyGbps()}};
      // Of one H200: best products and best read stream seen.
      results_.reference_ceilings = {
          {"read_gbps", 4600}, {"fp8_gflops", 1.45e6}, {"bf16_gflops", 774e3}};
      const double ranks = group_->size();
      ceilings_ = {4600 * ranks, (fp8 ? 1.45e6 : 774e3) * ranks, 774e3 * ranks};
      precision_ = {fp8 ? 1.0 : 2.0, 2, absl::GetFlag(FLAGS_kv_cache_dtype) == "fp8" ? 1.0 : 2.0};
    } else {
      results_.device =
          absl::StrFormat("%s, %d ranks x %d threads", CpuName(), group_->size(), threads_);
      // Of all ranks' threads together; the other ranks sleep meanwhile.
      cpu::SetNumThreads(group_->size() * threads_);
      const double gflops = MeasureFmaGflops(), gbps = MeasureReadGbps();
      cpu::SetNumThreads(threads_);
      results_.ceilings = {{"fma_gflops", gflops}, {"read_gbps", gbps}};
      ceilings_ = {gbps, gflops, gflops};
      precision_ = {fp8 ? 1.0 : 2.0, 2, absl::GetFlag(FLAGS_kv_cache_dtype) == "fp8" ? 1.0 : 4.0};
    }
    std::printf("%s\n", results_.device.c_str());
    for (const auto& [name, value] : results_.ceilings)
      std::printf("%s %.0f\n", name.c_str(), value);
    std::fflush(stdout);
  }

  // Loads a model on all ranks, lets rank 0 work with it and drops it.
  void WithModel(bool bifurcated, OpTimes* op_times,
                 const std::function<void(EngineBench*)>& work) {
    ModelRunnerOptions options = RunnerOptions();
    options.enable_bifurcated_attention = bifurcated;
    options.op_times = op_times;
    const absl::Time start = MonotonicNow();
    const auto runner = ModelRunner::Load(options, group_, [](const RankProgress&) {});
    CHECK_OK(runner.status());
    if (!leads()) return (*runner)->Follow();
    std::printf("loaded in %.1f s, %d KV blocks\n", absl::ToDoubleSeconds(MonotonicNow() - start),
                (*runner)->num_blocks());
    std::fflush(stdout);
    config_ = (*runner)->config();
    {
      EngineBench bench(options_, runner->get());
      work(&bench);
    }
    (*runner)->Shutdown();
  }

  double Floor(double num_tokens, double num_logits, double kv_tokens, double num_pairs) const {
    return FloorMs(CostOf(config_, precision_, num_tokens, num_logits, kv_tokens, num_pairs),
                   ceilings_);
  }
  double DecodeFloor(double num_rows, double kv_tokens) const {
    return Floor(num_rows, num_rows, kv_tokens, kv_tokens);
  }
  double PrefillFloor(double num_tokens) const {
    return Floor(num_tokens, 1, num_tokens, 0.5 * num_tokens * (num_tokens + 1));
  }
  // A request's prefill alone, and its share of decode steps of all the others.
  double MixedLimit() const {
    const double kv_tokens = kConcurrency * (kTokensIn + kTokensOut / 2.0);
    return 1e3 / (PrefillFloor(kTokensIn) +
                  kTokensOut * DecodeFloor(kConcurrency, kv_tokens) / kConcurrency);
  }

  // "" or why the case cannot run.
  std::string WhyNot(const CaseSpec& spec, const EngineBench& bench) const {
    if (spec.kind == "decode") return bench.WhyNot(spec.size, options_.context + 1);
    if (spec.kind == "prefill") return bench.WhyNot(1, spec.size);
    if (spec.kind == "mixed") return bench.WhyNot(kConcurrency, kTokensIn + kTokensOut);
    return bench.WhyNot(spec.size, spec.context);  // more than it needs: the context is shared
  }

  bool Skips(const CaseSpec& spec, const EngineBench& bench) {
    const std::string why = WhyNot(spec, bench);
    if (why.empty()) return false;
    std::printf("%-24s skipped: %s\n", spec.name.c_str(), why.c_str());
    results_.skipped[spec.name] = why;
    Save();
    return true;
  }

  void RunCases(const std::vector<CaseSpec>& cases, EngineBench* bench) {
    for (const CaseSpec& spec : cases) {
      if (Skips(spec, *bench)) continue;
      BenchCase c = {.name = spec.name, .unit = "ms"};
      if (spec.kind == "decode") {
        const DecodeResult step = bench->Decode(spec.size);
        c.value = step.ms;
        c.floor = DecodeFloor(spec.size, step.kv_tokens);
      } else if (spec.kind == "prefill") {
        c.value = bench->Prefill(spec.size);
        c.floor = PrefillFloor(spec.size);
      } else if (spec.kind == "shared") {
        const DecodeResult step = bench->Shared(spec.context, spec.size);
        c.value = step.ms;
        // The prefix is read once and scored by all.
        const double pairs = step.kv_tokens + (spec.size - 1.0) * spec.context;
        c.floor = Floor(spec.size, spec.size, step.kv_tokens, pairs);
      } else {
        c.unit = "requests/s";
        c.value = bench->Mixed(kConcurrency, kTokensIn, kTokensOut);
        c.floor = MixedLimit();
      }
      Add(std::move(c), spec);
    }
  }

  void RunPeers(const std::vector<CaseSpec>& cases, EngineBench* bench) {
    for (const CaseSpec& spec : cases) {
      for (BenchCase& c : results_.cases) {
        if (c.name != spec.name) continue;
        c.peer = "plain attention";
        c.peer_value = bench->Shared(spec.context, spec.size).ms;
        Print(c, spec);
      }
    }
    Save();
  }

  // The step as it is with time stamps, and each op's share of it, in the quickest of a few runs.
  void RunOps(const std::vector<CaseSpec>& cases, const OpTimes& times, EngineBench* bench) {
    constexpr int kRuns = 3;
    for (const CaseSpec& spec : cases) {
      if (Skips(spec, *bench)) continue;
      double best_sum = 0, best_ms = 0, kv_tokens = spec.size;
      std::vector<OpTime> best;
      for (int run = 0; run < kRuns; ++run) {
        DecodeResult step;
        if (spec.kind == "decode") {
          step = bench->Decode(spec.size);
          kv_tokens = step.kv_tokens;
        } else {
          step.ms = bench->Prefill(spec.size);
        }
        std::vector<OpTime> ops = times.LastStep(spec.size);
        double sum = 0;
        for (const OpTime& op : ops) sum += op.ms;
        if (best.empty() || sum < best_sum) {
          best_sum = sum;
          best_ms = step.ms;
          best = std::move(ops);
        }
      }
      if (best.empty()) {
        results_.skipped[spec.name] = "no single step has so many tokens";
        continue;
      }
      const std::string prefix(absl::StripSuffix(spec.name, "/ops"));
      for (const OpTime& op : best) {
        Add({.name = absl::StrCat(prefix, "/op=", op.name),
             .value = op.ms,
             .unit = "ms",
             .floor = OpFloor(op, spec, kv_tokens)},
            spec);
      }
      Add({.name = absl::StrCat(prefix, "/ops"), .value = best_sum, .unit = "ms"}, spec);
      Add({.name = absl::StrCat(prefix, "/timed"), .value = best_ms, .unit = "ms"}, spec);
    }
  }

  // Of products and attention, on this rank; 0 for other ops.
  double OpFloor(const OpTime& op, const CaseSpec& spec, double kv_tokens) const {
    const bool decodes = spec.kind == "decode";
    const double num_ranks = group_->size(), num_tokens = spec.size;
    StepCost cost;
    if (absl::StartsWith(op.name, "PagedAttention")) {
      const double pairs = decodes ? kv_tokens : 0.5 * num_tokens * (num_tokens + 1);
      cost = AttentionCostOf(config_, precision_, kv_tokens, pairs);
    } else if (op.n > 0) {
      const bool is_grouped = absl::StartsWith(op.name, "Grouped");
      const double elements = num_ranks * op.num_calls * op.n * op.k;
      const double num_matrices = is_grouped ? DistinctExperts(config_, num_tokens) /
                                                   config_.num_local_experts * op.num_experts
                                             : 1;
      cost.bytes = num_matrices * elements * static_cast<double>(SizeOf(op.w_dtype));
      (op.w_dtype == DType::kF8E4M3 ? cost.product_flops : cost.other_flops) =
          2.0 * op.m * elements;
    }
    return FloorMs(cost, ceilings_);
  }

  void Add(BenchCase c, const CaseSpec& spec) {
    Print(c, spec);
    results_.cases.push_back(std::move(c));
    Save();
  }

  void Print(const BenchCase& c, const CaseSpec& spec) const {
    std::printf("%-44s %9.3f %s", c.name.c_str(), c.value, c.unit.c_str());
    if (c.floor > 0) std::printf("   floor %8.3f   ratio %5.2f", c.floor, c.value / c.floor);
    if (c.unit == "ms" && !spec.ops) {
      std::printf("   %9.1f %s tokens/s", spec.size / c.value * 1e3,
                  spec.kind == "prefill" ? "prompt" : "output");
    }
    if (!c.peer.empty()) std::printf("   %s %.3f ms", c.peer.c_str(), c.peer_value);
    std::printf("\n");
    std::fflush(stdout);
  }

  void Save() {
    const std::string out = absl::GetFlag(FLAGS_out);
    if (!out.empty()) write_failed_ = !WriteFile(out, ToJson(results_));
  }

  MpiGroup* const group_;
  const bool is_cuda_ = absl::GetFlag(FLAGS_device) == "cuda";
  int threads_ = 0;
  EngineBenchOptions options_;
  std::vector<CaseSpec> cases_;
  ModelConfig config_;
  Precision precision_;
  Ceilings ceilings_;
  BenchResults results_;
  bool write_failed_ = false;
};

}  // namespace
}  // namespace bough

int main(int argc, char** argv) {
  const auto group = bough::MpiGroup::Init(&argc, &argv);
  const std::string command = bough::CommandLine(argc, argv);
  absl::ParseCommandLine(argc, argv);
  if (absl::GetFlag(FLAGS_scenario) == "bifurcated") {
    return bough::RunBifurcatedBench({.model = bough::RunnerOptions(),
                                      .cells = absl::GetFlag(FLAGS_cases),
                                      .out = absl::GetFlag(FLAGS_out),
                                      .command = command,
                                      .git = absl::GetFlag(FLAGS_git)},
                                     group.get());
  }
  return bough::Run(group.get(), command).Main();
}
