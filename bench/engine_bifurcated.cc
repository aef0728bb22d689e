#include "bench/engine_bifurcated.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/device_ceilings.h"
#include "bench/engine_founding.h"
#include "bench/results.h"
#include "common/block_hash.h"
#include "common/check.h"
#include "worker/clock.h"
#include "worker/model/device.h"
#include "worker/prefix_forest.h"

namespace bough {
namespace {

constexpr int kWarmUpSteps = 3, kSteps = 17;  // around kMeanPrivateTokens
constexpr int kPrivateBlocks = kReservedTokens / kBlockSize;
constexpr uint64_t kSeed = 1;

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Which cells to run, and the blocks that all of them share: the longest context's first, then a
// first block for every sample, then a second one.
class Samples {
 public:
  Samples(const ModelRunner& runner, const std::vector<FoundingCell>& cells)
      : vocab_size_(runner.config().vocab_size),
        forest_costs_(EngineConfigFor(runner).forest_costs) {
    for (const FoundingCell& cell : cells) {
      context_ = std::max(context_, cell.context);
      num_samples_ = std::max(num_samples_, cell.num_samples);
    }
  }

  int context_blocks() const { return context_ / kBlockSize; }
  int num_blocks() const { return context_blocks() + kPrivateBlocks * num_samples_; }

  // `num_tokens` of the context from `begin` on, as a prefill. The last one also fills the samples'
  // blocks with copies of blocks that are there by then.
  Batch Prefill(int begin, int num_tokens) {
    Batch batch;
    batch.cu_seqlens_q = {0, num_tokens};
    batch.seqlens_kv = {begin + num_tokens};
    batch.max_blocks = context_blocks();
    for (int b = 0; b < context_blocks(); ++b) batch.block_tables.push_back(b);
    for (int t = begin; t < begin + num_tokens; ++t) {
      batch.tokens.push_back(RandomToken());
      batch.positions.push_back(t);
      batch.slot_mapping.push_back(t);
    }
    batch.own_begin = {0};
    if (begin + num_tokens == context_) {
      CHECK_GE(begin, kBlockSize);
      for (int b = context_blocks(); b < num_blocks(); ++b) {
        batch.copy_src.push_back(static_cast<int32_t>(random_() % (begin / kBlockSize)));
        batch.copy_dst.push_back(b);
      }
    }
    return batch;
  }
  int context() const { return context_; }

  // The step in which every sample of the cell sees `num_private` tokens of its own, the one that it
  // brings included. `in_flight`: that token is what the step before samples.
  Batch Decode(const FoundingCell& cell, int num_private, bool in_flight) {
    const int position = cell.context + num_private - 1;
    const int shared_blocks = cell.context / kBlockSize;
    Batch batch;
    batch.num_decode = cell.num_samples;
    batch.max_blocks = shared_blocks + kPrivateBlocks;
    batch.cu_seqlens_q = {0};
    for (int s = 0; s < cell.num_samples; ++s) {
      for (int b = 0; b < shared_blocks; ++b) batch.block_tables.push_back(b);
      for (int b = 0; b < kPrivateBlocks; ++b) {
        batch.block_tables.push_back(context_blocks() + b * num_samples_ + s);
      }
      const int block = batch.block_tables[s * batch.max_blocks + position / kBlockSize];
      batch.tokens.push_back(in_flight ? -1 - s : RandomToken());
      batch.positions.push_back(position);
      batch.slot_mapping.push_back(block * kBlockSize + position % kBlockSize);
      batch.cu_seqlens_q.push_back(s + 1);
      batch.seqlens_kv.push_back(position + 1);
      batch.logits_tokens.push_back(s);
      SamplingRow row;
      row.logits_row = s;
      row.temperature = 0.8f;
      row.top_p = 0.95f;
      row.seed = kSeed;
      row.choice = s;
      row.position = num_private;
      batch.samples.push_back(row);
    }
    AddForest(&batch);
    return batch;
  }

 private:
  // As the engine finds it, from the block tables.
  void AddForest(Batch* batch) const {
    std::vector<DecodeRow> rows;
    for (int s = 0; s < batch->num_seqs(); ++s) {
      rows.push_back({{&batch->block_tables[s * batch->max_blocks], size_t(batch->max_blocks)},
                      batch->seqlens_kv[s]});
    }
    PrefixForest forest = BuildPrefixForest(rows, forest_costs_);
    CHECK(std::is_sorted(forest.order.begin(), forest.order.end())) << "rows stay where they are";
    batch->nodes = std::move(forest.nodes);
    batch->own_begin = std::move(forest.own_begin);
  }
  int32_t RandomToken() { return static_cast<int32_t>(3 + random_() % (vocab_size_ - 3)); }

  const int vocab_size_;
  const ForestCosts forest_costs_;
  int context_ = 0, num_samples_ = 0;
  std::mt19937 random_{kSeed};
};

class Table {
 public:
  Table(const BifurcatedBenchOptions& options, MpiGroup* group) : options_(options) {
    const ModelRunnerOptions& model = options.model;
    results_.scenario =
        absl::StrFormat("bifurcated %s %s kv=%s%s", model.model_dir, model.quantization,
                        model.kv_cache_dtype, model.enable_fp8_attention ? " fp8 attention" : "");
    results_.command = options.command;
    results_.git = options.git;
    {
      const auto device = OpenCudaDevice(0);
      CHECK_OK(device.status());
      results_.device = (*device)->name();
      results_.ceilings = {{"read_gbps", MeasureDeviceReadGbps()}};
    }
    results_.reference_ceilings = {
        {"floor_read_gbps", 4800},          {"floor_bf16_gflops", 989e3},
        {"floor_fp8_gflops", 1979e3},       {"envelope_read_gbps", 4400},
        {"envelope_bf16_gflops", 700e3},    {"envelope_fp8_gflops", 1300e3},
        {"envelope_bf16_attention", 620e3}, {"envelope_fp8_attention", 900e3}};
    precision_ = {model.quantization == "fp8" ? 1.0 : 2.0, 2,
                  model.kv_cache_dtype == "fp8" ? 1.0 : 2.0};
    const absl::Time start = MonotonicNow();
    auto runner = ModelRunner::Load(model, group, [](const RankProgress&) {});
    CHECK_OK(runner.status());
    runner_ = *std::move(runner);
    std::printf("%s\nread_gbps %.0f\nloaded in %.1f s, %d KV blocks\n", results_.device.c_str(),
                results_.ceilings["read_gbps"], absl::ToDoubleSeconds(MonotonicNow() - start),
                runner_->num_blocks());
  }

  int Main() {
    const std::vector<FoundingCell> cells = CellsThatFit();
    if (!cells.empty()) {
      Samples samples(*runner_, cells);
      CHECK_LE(samples.num_blocks(), runner_->num_blocks());
      PrefillContext(&samples);
      for (const FoundingCell& cell : cells) Add(cell, StepMs(cell, &samples));
    }
    runner_->Shutdown();
    return write_failed_ ? 1 : 0;
  }

 private:
  // The others are listed with what they would need.
  std::vector<FoundingCell> CellsThatFit() {
    std::vector<FoundingCell> fitting;
    const auto& wanted = options_.cells;
    for (const FoundingCell& cell : FoundingCells()) {
      if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), cell.name()) == wanted.end()) {
        continue;
      }
      const std::string why = WhyNot(cell);
      if (why.empty()) {
        fitting.push_back(cell);
      } else {
        results_.skipped[cell.name()] = why;
        std::printf("%-18s %s\n", cell.name().c_str(), why.c_str());
      }
    }
    return fitting;
  }

  std::string WhyNot(const FoundingCell& cell) const {
    const int64_t block_bytes = runner_->kv_block_bytes();
    // All cells share the longest context's blocks.
    const int64_t num_blocks =
        cell.num_kv_blocks() + (FoundingCells().back().context - cell.context) / kBlockSize;
    if (cell.num_kv_blocks() > runner_->num_blocks()) {
      return absl::StrFormat("does not fit: needs %.1f GB of KV cache, %.1f GB are left",
                             1e-9 * cell.num_kv_blocks() * block_bytes,
                             1e-9 * runner_->num_blocks() * block_bytes);
    }
    CHECK_LE(num_blocks, runner_->num_blocks()) << "fits alone, but not beside the longest context";
    if (cell.num_samples > options_.model.max_num_seqs) {
      return absl::StrCat("needs max_num_seqs ", cell.num_samples, ", is ",
                          options_.model.max_num_seqs);
    }
    return "";
  }

  void PrefillContext(Samples* samples) {
    const absl::Time start = MonotonicNow();
    const int last = samples->context() - kBlockSize;  // where the last chunk begins
    for (int begin = 0; begin < samples->context();) {
      const int chunk = begin == last
                            ? kBlockSize
                            : std::min(options_.model.max_num_batched_tokens, last - begin);
      runner_->Launch(samples->Prefill(begin, chunk));
      runner_->Wait();
      begin += chunk;
    }
    std::printf("context of %d tokens in %.2f s\n", samples->context(),
                absl::ToDoubleSeconds(MonotonicNow() - start));
    std::fflush(stdout);
  }

  // Two steps are in flight, as the engine has it.
  double StepMs(const FoundingCell& cell, Samples* samples) {
    const int first = kMeanPrivateTokens - kSteps / 2 - kWarmUpSteps;
    const int end = kMeanPrivateTokens + kSteps / 2 + 1;
    std::vector<double> ms;
    runner_->Launch(samples->Decode(cell, first, false));
    absl::Time last = MonotonicNow();
    for (int num_private = first; num_private < end; ++num_private) {
      if (num_private + 1 < end) runner_->Launch(samples->Decode(cell, num_private + 1, true));
      const StepResult result = runner_->Wait();
      const absl::Time now = MonotonicNow();
      if (num_private >= first + kWarmUpSteps) ms.push_back(absl::ToDoubleMilliseconds(now - last));
      last = now;
      CHECK_EQ(static_cast<int>(result.tokens.size()), cell.num_samples);
      for (int32_t token : result.tokens) CHECK(0 <= token && token < runner_->config().vocab_size);
    }
    CHECK_EQ(ms.size(), size_t{kSteps});
    return Median(std::move(ms));
  }

  void Add(const FoundingCell& cell, double ms) {
    const StepLimits limits = LimitsOf(runner_->config(), precision_, cell);
    const double gate = limits.GateMs(cell.num_samples);
    const std::optional<double> paper = PaperStepMs(runner_->config(), cell);
    BenchCase c = {.name = cell.name(), .value = ms, .unit = "ms", .floor = limits.floor_ms};
    c.gate = gate;
    c.more = {{"envelope", limits.envelope_ms}, {"envelope_ratio", ms / limits.envelope_ms}};
    if (paper) {
      c.peer = "paper's code, bf16, an H200, another run";
      c.peer_value = *paper;
    }
    std::printf("%-18s %8.3f ms  floor %7.3f x %5.2f  envelope %7.3f x %5.2f  %s %.2f",
                c.name.c_str(), ms, limits.floor_ms, ms / limits.floor_ms, limits.envelope_ms,
                ms / limits.envelope_ms, ms <= gate ? "keeps" : "MISSES", gate);
    if (paper) std::printf("  paper's code %.2f: %.2f x", *paper, *paper / ms);
    std::printf("\n");
    std::fflush(stdout);
    results_.cases.push_back(std::move(c));
    if (!options_.out.empty()) write_failed_ = !WriteFile(options_.out, ToJson(results_));
  }

  const BifurcatedBenchOptions options_;
  std::unique_ptr<ModelRunner> runner_;
  Precision precision_;
  BenchResults results_;
  bool write_failed_ = false;
};

}  // namespace

int RunBifurcatedBench(const BifurcatedBenchOptions& options, MpiGroup* group) {
  CHECK_EQ(group->size(), 1);
  CHECK_EQ(options.model.device, "cuda");
  return Table(options, group).Main();
}

}  // namespace bough
