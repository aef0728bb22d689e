// Measures the whole engine (scheduler, batch, model, sampling) without a network:
//
//   bench-engine --model=models/demo --out=bench/results/cpu/engine_demo.json
//   tools/mpirun.sh 2 bench-engine --model=models/demo --tp_size=2
//
// Cases: decode/b=N, one step of N sequences after 64 private tokens; prefill/t=N, submit to first
// token of a prompt of N; shared/ctx=C/n=N, one step of N samples of one prompt, bifurcated and, as
// its peer, with plain attention. Medians. A case's floor is max(bytes / read ceiling, FLOPs / FMA
// ceiling), where every weight that the step needs and every KV block is read once.
#include "worker/engine.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_format.h"
#include "bench/ceilings.h"
#include "bench/results.h"
#include "common/check.h"
#include "kernels/cpu/parallel.h"
#include "worker/clock.h"
#include "worker/comm/mpi_group.h"
#include "worker/model_runner.h"

ABSL_FLAG(std::string, model, "models/demo", "Hugging Face folder");
ABSL_FLAG(int, tp_size, 1, "as bough-worker's");
ABSL_FLAG(int, ep_size, 1, "as bough-worker's");
ABSL_FLAG(int, threads, 0, "threads of the kernels per rank; 0 = cores / ranks");
ABSL_FLAG(std::string, out, "", "path of the JSON file; empty: print only");

namespace bough {
namespace {

constexpr int kPrivateTokens = 64;
constexpr int kDecodeSteps = 48;
constexpr int kSharedContexts[] = {512, 3072};
constexpr int kSamples = 16;

double Median(std::vector<double> values) {
  CHECK(!values.empty());
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Bytes and FLOPs of one step by the model's shape; weights are bf16, activations and KV f32.
struct StepCost {
  double bytes = 0, flops = 0;
};

// num_tokens pass the layers, num_logits the lm_head; kv_tokens are read, num_pairs (query, key)
// pairs are scored.
StepCost CostOf(const ModelConfig& c, int num_tokens, int num_logits, double kv_tokens,
                double num_pairs) {
  const double qkv =
      1.0 * c.hidden_size * c.head_dim * (2 * c.num_attention_heads + 2 * c.num_key_value_heads);
  const double expert = 3.0 * c.hidden_size * c.intermediate_size;
  const int top_k = c.is_moe() ? c.num_experts_per_tok : 1;
  const int num_experts = c.is_moe() ? c.num_local_experts : 1;
  // Experts that a step touches when routing is uniform.
  const double untouched = std::pow(1.0 - 1.0 * top_k / num_experts, num_tokens);
  const double layers = c.num_hidden_layers;
  const double lm_head = 1.0 * c.hidden_size * c.vocab_size;
  StepCost cost;
  cost.bytes = 2 * (layers * (qkv + expert * num_experts * (1 - untouched)) + lm_head) +
               4 * layers * kv_tokens * 2 * c.num_key_value_heads * c.head_dim;
  cost.flops = 2 * (layers * num_tokens * (qkv + expert * top_k) + num_logits * lm_head) +
               4 * layers * num_pairs * c.num_attention_heads * c.head_dim;
  return cost;
}

class EngineBench {
 public:
  EngineBench(ModelRunner* runner, double gflops, double gbps)
      : runner_(runner), gflops_(gflops), gbps_(gbps) {}

  // One decode step of `num_seqs` sequences that share nothing.
  BenchCase Decode(int num_seqs) {
    Engine engine(Config(), runner_);
    for (int i = 0; i < num_seqs; ++i) engine.Submit(MakeRequest(kPrivateTokens, kDecodeSteps, 1));
    const double seconds = MedianDecodeStep(&engine, num_seqs);
    const double keys = num_seqs * (kPrivateTokens + kDecodeSteps / 2.0);
    return Case(absl::StrFormat("decode/b=%d", num_seqs), seconds,
                CostOf(runner_->config(), num_seqs, num_seqs, keys, keys));
  }

  // One decode step of `num_samples` samples of one prompt.
  BenchCase Shared(int context, int num_samples) {
    Engine engine(Config(), runner_);
    engine.Submit(MakeRequest(context, kDecodeSteps, num_samples));
    const double seconds = MedianDecodeStep(&engine, num_samples);
    const double own = num_samples * kDecodeSteps / 2.0;
    return Case(absl::StrFormat("shared/ctx=%d/n=%d", context, num_samples), seconds,
                CostOf(runner_->config(), num_samples, num_samples, context + own,
                       1.0 * num_samples * context + own));
  }

  // Submit to first token, prompt by prompt, nothing cached.
  BenchCase Prefill(int num_tokens) {
    std::vector<double> seconds;
    for (int i = 0; i < 5; ++i) {
      Engine engine(Config(), runner_);
      const absl::Time start = MonotonicNow();
      engine.Submit(MakeRequest(num_tokens, 1, 1));
      bool done = false;
      while (!done) {
        const auto events = engine.Step(MonotonicNow());
        done = events.has_value() && !events->tokens.empty();
      }
      seconds.push_back(absl::ToDoubleSeconds(MonotonicNow() - start));
    }
    return Case(
        absl::StrFormat("prefill/t=%d", num_tokens), Median(seconds),
        CostOf(runner_->config(), num_tokens, 1, num_tokens, 0.5 * num_tokens * (num_tokens + 1)));
  }

 private:
  EngineConfig Config() const {
    EngineConfig config;
    config.model_key = runner_->model_key();
    config.limits.vocab_size = runner_->config().vocab_size;
    config.limits.max_model_len = runner_->max_model_len();
    config.num_blocks = runner_->num_blocks();
    config.clock = MonotonicNow;
    return config;
  }

  Request MakeRequest(int prompt_len, int max_tokens, int num_samples) {
    Request request;
    request.key = {.link = 0, .handle = next_handle_++};
    std::uniform_int_distribution<int32_t> token(3, runner_->config().vocab_size - 1);
    for (int i = 0; i < prompt_len; ++i) request.prompt_ids.push_back(token(random_));
    request.sampling.max_tokens = max_tokens;
    request.sampling.ignore_eos = true;
    request.sampling.temperature = 0.8f;
    request.sampling.top_p = 0.95f;
    for (int i = 0; i < num_samples; ++i) request.choices.push_back({.index = i, .emitted = {}});
    return request;
  }

  // Over the steps that decode all `num_rows` rows and nothing else.
  double MedianDecodeStep(Engine* engine, int num_rows) {
    std::vector<double> seconds;
    bool any_done = false;
    while (!any_done) {
      const auto events = engine->Step(MonotonicNow());
      CHECK(events.has_value());
      for (const DoneEvent& done : events->dones) CHECK_OK(done.status);
      any_done = !events->dones.empty();
      if (events->decode_rows == num_rows && events->prefill_tokens == 0) {
        seconds.push_back(absl::ToDoubleSeconds(events->step_time));
      }
    }
    while (engine->Step(MonotonicNow()).has_value()) {
    }
    return Median(seconds);
  }

  BenchCase Case(const std::string& name, double seconds, const StepCost& cost) const {
    const double floor = std::max(cost.bytes / (gbps_ * 1e9), cost.flops / (gflops_ * 1e9));
    return {.name = name, .value = seconds * 1e3, .unit = "ms", .floor = floor * 1e3};
  }

  ModelRunner* const runner_;
  const double gflops_, gbps_;
  uint64_t next_handle_ = 1;
  std::mt19937 random_{1};
};

std::unique_ptr<ModelRunner> LoadModel(MpiGroup* group, bool enable_bifurcated_attention) {
  ModelRunnerOptions options;
  options.model_dir = absl::GetFlag(FLAGS_model);
  options.tp_size = absl::GetFlag(FLAGS_tp_size);
  options.ep_size = absl::GetFlag(FLAGS_ep_size);
  options.kv_cache_memory_bytes = int64_t{512} << 20;
  options.enable_bifurcated_attention = enable_bifurcated_attention;
  auto runner = ModelRunner::Load(options, group, [](const RankProgress&) {});
  CHECK_OK(runner.status());
  return *std::move(runner);
}

void Print(const BenchCase& c) {
  const size_t at = c.name.find_last_of('=') + 1;
  const bool steps = c.name[0] != 'p';
  const double per_second = std::stod(c.name.substr(at)) / c.value * 1e3;
  std::printf("%-24s %9.2f ms   floor %8.2f   ratio %5.2f   %9.1f %s tokens/s", c.name.c_str(),
              c.value, c.floor, c.value / c.floor, per_second, steps ? "output" : "prompt");
  if (!c.peer.empty()) std::printf("   %s %.2f ms", c.peer.c_str(), c.peer_value);
  std::printf("\n");
}

int Main(MpiGroup* group) {
  const int num_cores = static_cast<int>(std::thread::hardware_concurrency());
  int threads = absl::GetFlag(FLAGS_threads);
  if (threads == 0) threads = std::max(1, num_cores / group->size());
  cpu::SetNumThreads(threads);
  const auto runner = LoadModel(group, true);
  const auto plain = LoadModel(group, false);
  if (group->rank() != 0) {
    runner->Follow();
    plain->Follow();
    return 0;
  }
  BenchResults results;
  results.scenario = absl::StrFormat("engine tp=%d ep=%d", absl::GetFlag(FLAGS_tp_size),
                                     absl::GetFlag(FLAGS_ep_size));
  results.device =
      absl::StrFormat("%s, %d ranks x %d threads", CpuName(), group->size(), cpu::NumThreads());
  // Of all ranks' threads together; the other ranks sleep meanwhile.
  cpu::SetNumThreads(group->size() * threads);
  const double gflops = MeasureFmaGflops();
  const double gbps = MeasureReadGbps();
  cpu::SetNumThreads(threads);
  results.ceilings = {{"fma_gflops", gflops}, {"read_gbps", gbps}};
  std::printf("%s: %.1f GFLOP/s, %.1f GB/s\n", results.device.c_str(), gflops, gbps);

  EngineBench bench(runner.get(), gflops, gbps), plain_bench(plain.get(), gflops, gbps);
  const auto add = [&](BenchCase c) {
    Print(c);
    results.cases.push_back(std::move(c));
  };
  for (int b : {1, 4, 16, 64}) add(bench.Decode(b));
  for (int t : {64, 512, 2048}) add(bench.Prefill(t));
  // Followers execute for one runner at a time, so the peer's runs come after all of ours.
  std::vector<BenchCase> shared;
  for (int context : kSharedContexts) shared.push_back(bench.Shared(context, kSamples));
  runner->Shutdown();
  for (size_t i = 0; i < shared.size(); ++i) {
    shared[i].peer = "plain attention";
    shared[i].peer_value = plain_bench.Shared(kSharedContexts[i], kSamples).value;
    add(std::move(shared[i]));
  }
  plain->Shutdown();
  const std::string out = absl::GetFlag(FLAGS_out);
  return out.empty() || WriteFile(out, ToJson(results)) ? 0 : 1;
}

}  // namespace
}  // namespace bough

int main(int argc, char** argv) {
  const auto group = bough::MpiGroup::Init(&argc, &argv);
  absl::ParseCommandLine(argc, argv);
  return bough::Main(group.get());
}
