// Minutes of random load on an engine that has too few KV blocks for it: arrivals, prompts, lengths,
// samples, penalties, stop tokens, deadlines, and cancels of choices, requests and whole streams.
//
//   bench-soak --minutes=0.2
//   bench-soak --minutes=10 --device=cuda --model=bench/models/mixtral-8x7b --load_format=dummy
//     --quantization=fp8 --kv_cache_dtype=fp8 --out=bench/results/h200/soak.json
//
// Checks every event (soak_check.h), the engine's integrity every 16 steps, and in the end that all
// blocks are free and that the memory of device and process is what it was after the warm-up.
// Exits with 1 on any violation.
#include <malloc.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "bench/results.h"
#include "bench/soak_check.h"
#include "bench/soak_requests.h"
#include "common/block_hash.h"
#include "common/check.h"
#include "kernels/cpu/parallel.h"
#include "worker/clock.h"
#include "worker/comm/mpi_group.h"
#include "worker/model/device.h"
#include "worker/model_runner.h"

ABSL_FLAG(double, minutes, 10, "of load; the last requests' end comes on top, 5 s at most");
ABSL_FLAG(std::string, model, "models/demo", "Hugging Face folder");
ABSL_FLAG(std::string, device, "cpu", "as bough-worker's");
ABSL_FLAG(std::string, quantization, "none", "as bough-worker's");
ABSL_FLAG(std::string, kv_cache_dtype, "auto", "as bough-worker's");
ABSL_FLAG(std::string, load_format, "auto", "as bough-worker's");
ABSL_FLAG(int, num_blocks, 64, "KV blocks that the engine may use; few, so that it preempts");
ABSL_FLAG(int, max_num_seqs, 64, "as bough-worker's");
ABSL_FLAG(int, max_num_batched_tokens, 512, "as bough-worker's");
ABSL_FLAG(int, max_live, 64, "requests under way, at most; the aim changes every few seconds");
ABSL_FLAG(uint32_t, seed, 1, "of all that is random");
ABSL_FLAG(std::string, out, "", "path of the JSON file; empty: print only");
ABSL_FLAG(std::string, git, "", "commit, where the working directory is no checkout");

namespace bough {
namespace {

constexpr int kStepsPerIntegrityCheck = 16;
constexpr absl::Duration kReportEvery = absl::Seconds(15);
constexpr double kWarmUpShare = 0.2;
constexpr absl::Duration kDrain = absl::Seconds(5);  // then what is left is cancelled
// Batches as large as none before them make the staging memory grow (worker/model/device_batch.h).
constexpr int64_t kDeviceTolerance = 4 << 20;
constexpr int64_t kProcessTolerance = 64 << 20;

int64_t ResidentBytes() {
  malloc_trim(0);
  std::ifstream statm("/proc/self/statm");
  int64_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * 4096;
}

std::unique_ptr<ModelRunner> LoadModel(MpiGroup* group) {
  ModelRunnerOptions options;
  options.model_dir = absl::GetFlag(FLAGS_model);
  options.device = absl::GetFlag(FLAGS_device);
  options.quantization = absl::GetFlag(FLAGS_quantization);
  options.kv_cache_dtype = absl::GetFlag(FLAGS_kv_cache_dtype);
  options.load_format = absl::GetFlag(FLAGS_load_format);
  options.max_num_batched_tokens = absl::GetFlag(FLAGS_max_num_batched_tokens);
  options.max_num_seqs = absl::GetFlag(FLAGS_max_num_seqs);
  auto runner = ModelRunner::Load(options, group, [](const RankProgress&) {});
  CHECK_OK(runner.status());
  return *std::move(runner);
}

EngineConfig MakeEngineConfig(const ModelRunner& runner) {
  EngineConfig config = EngineConfigFor(runner);
  config.num_blocks = std::min(runner.num_blocks(), absl::GetFlag(FLAGS_num_blocks));
  config.max_num_seqs = absl::GetFlag(FLAGS_max_num_seqs);
  config.max_num_batched_tokens = absl::GetFlag(FLAGS_max_num_batched_tokens);
  config.clock = MonotonicNow;
  return config;
}

// A request alone takes at most half of the blocks. Answers are long beside most prompts: sequences
// that grow are what makes an engine preempt.
SoakShape MakeShape(const EngineConfig& config) {
  SoakShape shape;
  shape.limits = config.limits;
  const int room = std::min(config.num_blocks * kBlockSize / 2, config.limits.max_model_len);
  shape.max_prompt_tokens = std::max(1, std::min(1024, room / 2));
  shape.max_answer_tokens = std::max(1, std::min(768, room / 2));
  return shape;
}

class Soak {
 public:
  Soak(std::string command, ModelRunner* runner, Device* device)
      : device_(device),
        config_(MakeEngineConfig(*runner)),
        engine_(config_, runner),
        requests_(MakeShape(config_), absl::GetFlag(FLAGS_seed)),
        check_(config_.limits) {
    results_.scenario = absl::StrCat("soak ", absl::GetFlag(FLAGS_model));
    results_.device = device->is_cuda() ? device->name() : CpuName();
    results_.command = std::move(command);
    results_.git = absl::GetFlag(FLAGS_git);
  }

  int Main() {
    const absl::Duration length = absl::Minutes(1) * absl::GetFlag(FLAGS_minutes);
    begin_ = last_report_ = MonotonicNow();
    for (absl::Time now = begin_; now < begin_ + length; now = MonotonicNow()) {
      if (process_bytes_ == 0 && now > begin_ + kWarmUpShare * length) NoteMemory();
      Disturb(now);
      Step(now);
    }
    Drain();
    CheckEnd();
    Report();
    for (const BenchCase& c : results_.cases) std::printf("%-22s %.0f\n", c.name.c_str(), c.value);
    return check_.num_violations() == 0 && written_ ? 0 : 1;
  }

 private:
  // Arrivals up to an aim that wanders, and now and then a cancel.
  void Disturb(absl::Time now) {
    if (now > next_aim_) {
      aim_ = requests_.Pick(0, absl::GetFlag(FLAGS_max_live));
      next_aim_ = now + absl::Milliseconds(requests_.Pick(200, 4000));
    }
    for (int i = requests_.Pick(0, 4); i > 0 && check_.num_live() < aim_; --i) {
      Request request = requests_.Next(now);
      check_.Submitted(request);
      engine_.Submit(std::move(request));
    }
    if (check_.num_live() > 0 && requests_.OneIn(30)) CancelOne();
    if (requests_.OneIn(2000)) CancelLink(requests_.Pick(0, SoakShape().num_links - 1));
  }

  void CancelOne() {
    const RequestKey key = check_.LiveKey(requests_.Pick(0, check_.num_live() - 1));
    const int choice = requests_.OneIn(2) ? -1 : requests_.Pick(0, check_.NumChoices(key) - 1);
    engine_.Cancel(key, choice);
    check_.Cancelled(key, choice);
  }

  bool Step(absl::Time now) {
    const auto events = engine_.Step(now);
    if (!events) return false;
    check_.Observe(*events);
    if (++num_steps_ % kStepsPerIntegrityCheck == 0) engine_.CheckIntegrity();
    const LoadReport& load = events->load;
    if (load.free_blocks + load.cached_blocks + load.used_blocks != load.total_blocks) {
      check_.Violation("free + cached + used blocks are not all blocks");
    }
    if (now - last_report_ > kReportEvery) Report();
    return true;
  }

  void Drain() {
    const absl::Time end = MonotonicNow() + kDrain;
    bool cancelled = false;
    for (absl::Time now = MonotonicNow(); Step(now); now = MonotonicNow()) {
      if (now < end || std::exchange(cancelled, true)) continue;
      for (int link = 0; link < SoakShape().num_links; ++link) CancelLink(link);
    }
  }

  void CancelLink(uint64_t link) {
    engine_.CancelLink(link);
    check_.CancelledLink(link);
  }

  void NoteMemory() {
    device_free_bytes_ = device_->FreeBytes();
    process_bytes_ = ResidentBytes();
  }

  void CheckEnd() {
    engine_.CheckIntegrity();
    if (check_.num_live() > 0) {
      check_.Violation(absl::StrCat(check_.num_live(), " requests have no Done"));
    }
    const LoadReport load = engine_.Load();
    if (load.used_blocks != 0) {
      check_.Violation(absl::StrCat(load.used_blocks, " blocks are in use by nobody"));
    }
    if (load.preemptions == 0) check_.Violation("no preemption: give it fewer --num_blocks");
    device_growth_ = device_free_bytes_ - device_->FreeBytes();
    process_growth_ = ResidentBytes() - process_bytes_;
    if (device_growth_ > kDeviceTolerance) {
      check_.Violation(absl::StrCat("device memory grew by ", device_growth_, " bytes"));
    }
    if (process_growth_ > kProcessTolerance) {
      check_.Violation(absl::StrCat("process memory grew by ", process_growth_, " bytes"));
    }
  }

  void Report() {
    last_report_ = MonotonicNow();
    const SoakCounts& c = check_.counts();
    const LoadReport load = engine_.Load();
    std::printf(
        "%4.0f s  %lld steps  %lld requests (%d live)  %lld tokens  %lld preemptions  "
        "%lld + %lld cancels  %lld violations\n",
        absl::ToDoubleSeconds(last_report_ - begin_), static_cast<long long>(num_steps_),
        static_cast<long long>(c.requests), check_.num_live(), static_cast<long long>(c.tokens),
        static_cast<long long>(load.preemptions), static_cast<long long>(c.cancelled_requests),
        static_cast<long long>(c.cancelled_choices),
        static_cast<long long>(check_.num_violations()));
    std::fflush(stdout);
    Save();
  }

  // So that a run which is cut off leaves what it found.
  void Save() {
    const SoakCounts& c = check_.counts();
    const auto count = [&](const char* name, int64_t value) {
      results_.cases.push_back({.name = name, .value = static_cast<double>(value), .unit = ""});
    };
    results_.cases = {
        {.name = "time", .value = absl::ToDoubleSeconds(MonotonicNow() - begin_), .unit = "s"}};
    count("steps", num_steps_);
    count("requests", c.requests);
    count("tokens", c.tokens);
    count("finished", c.finished);
    count("stopped_early", c.stopped_early);
    count("ended_cancelled", c.ended_cancelled);
    count("ended_by_deadline", c.ended_by_deadline);
    count("cancelled_choices", c.cancelled_choices);
    count("still_live", check_.num_live());
    count("preemptions", engine_.Load().preemptions);
    count("cached_tokens", c.cached_tokens);
    count("rows_with_logprobs", c.rows_with_logprobs);
    count("device_growth_bytes", device_growth_);
    count("process_growth_bytes", process_growth_);
    count("violations", check_.num_violations());
    results_.cases.back().gate = 0;
    const std::string out = absl::GetFlag(FLAGS_out);
    written_ = out.empty() || WriteFile(out, ToJson(results_));
  }

  Device* const device_;
  const EngineConfig config_;
  Engine engine_;
  SoakRequests requests_;
  SoakCheck check_;
  BenchResults results_;
  absl::Time begin_, last_report_, next_aim_ = absl::InfinitePast();
  int aim_ = 0;
  int64_t num_steps_ = 0;
  int64_t device_free_bytes_ = 0, process_bytes_ = 0;  // after the warm-up
  int64_t device_growth_ = 0, process_growth_ = 0;
  bool written_ = false;
};

int Main(MpiGroup* group, const std::string& command) {
  cpu::SetNumThreads(static_cast<int>(std::thread::hardware_concurrency()));
  CHECK_EQ(group->size(), 1) << "one rank only";
  const bool is_cuda = absl::GetFlag(FLAGS_device) == "cuda";
  auto device = is_cuda ? OpenCudaDevice(0) : MakeCpuDevice();  // to ask for its memory
  CHECK_OK(device.status());
  const auto runner = LoadModel(group);
  return Soak(command, runner.get(), device->get()).Main();
}

}  // namespace
}  // namespace bough

int main(int argc, char** argv) {
  const auto group = bough::MpiGroup::Init(&argc, &argv);
  const std::string command = bough::CommandLine(argc, argv);
  absl::ParseCommandLine(argc, argv);
  return bough::Main(group.get(), command);
}
