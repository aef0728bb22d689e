// Measures the CPU kernels at the demo model's shapes against this machine's own ceilings:
//
//   bench-kernels-cpu [--threads=2] [--out=bench/results/cpu/kernels.json]
//
// A case's floor is max(bytes / read ceiling, FLOPs / FMA ceiling); the best of several runs
// counts. Weights and caches are larger than the last-level cache in sum, so each run reads memory.
#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "bench/ceilings.h"
#include "bench/results.h"
#include "common/check.h"
#include "kernels/attention.h"
#include "kernels/cpu/parallel.h"
#include "kernels/gemm.h"
#include "kernels/sampling.h"

ABSL_FLAG(int, threads, 0, "threads of the kernels; 0 = one per core");
ABSL_FLAG(std::string, out, "", "path of the JSON file; empty: print only");

namespace bough {
namespace {

// Of the demo model.
constexpr int kHidden = 512, kIntermediate = 256, kNumExperts = 8, kTopK = 2, kVocab = 4096;
constexpr int kNumHeads = 4, kNumKvHeads = 2, kHeadDim = 128, kBlockSize = 64;

std::vector<float> RandomFloats(int64_t size) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> values(size);
  for (float& v : values) v = uniform(random);
  return values;
}

// Any finite values will do: a cheap pattern, quick to fill.
std::vector<uint16_t> SomeBF16(int64_t size) {
  std::vector<uint16_t> bits(size);
  for (int64_t i = 0; i < size; ++i) bits[i] = static_cast<uint16_t>(0x3c00 + i % 509);
  return bits;
}

class Bench {
 public:
  Bench() {
    results_.scenario = "kernels";
    results_.device = absl::StrCat(CpuName(), ", ", cpu::NumThreads(), " threads");
    gflops_ = results_.ceilings["fma_gflops"] = MeasureFmaGflops();
    gbps_ = results_.ceilings["read_gbps"] = MeasureReadGbps();
    std::printf("%s: %.1f GFLOP/s, %.1f GB/s\n\n%-32s %10s %10s %7s %9s %8s\n",
                results_.device.c_str(), gflops_, gbps_, "case", "us", "floor us", "ratio",
                "GFLOP/s", "GB/s");
  }

  void Gemm(const std::string& name, int m, int n, int k) {
    const int64_t weights = int64_t{n} * k;
    const int copies = static_cast<int>(kWorkingSetBytes / (weights * 2));
    const std::vector<uint16_t> w = SomeBF16(weights * copies);
    const std::vector<float> x = RandomFloats(int64_t{m} * k);
    std::vector<float> y(int64_t{m} * n);
    const double seconds = BestSeconds([&](int run) {
      cpu::Gemm({.x = x.data(),
                 .w = &w[run % copies * weights],
                 .y = y.data(),
                 .m = m,
                 .n = n,
                 .k = k,
                 .w_dtype = DType::kBF16});
    });
    Add(absl::StrCat("gemm ", name, " m=", m), seconds, 2.0 * m * n * k,
        2.0 * weights + 4.0 * m * (n + k));
  }

  // Rows spread evenly over the experts.
  void GroupedGemm(const std::string& name, int num_tokens, int n, int k) {
    const int num_rows = num_tokens * kTopK;
    std::vector<int32_t> offsets(kNumExperts + 1);
    for (int e = 0; e <= kNumExperts; ++e) offsets[e] = num_rows * e / kNumExperts;
    int active = 0;
    for (int e = 0; e < kNumExperts; ++e) active += offsets[e + 1] > offsets[e];

    const int64_t weights = int64_t{kNumExperts} * n * k;
    const int copies = static_cast<int>(kWorkingSetBytes / (weights * 2));
    const std::vector<uint16_t> w = SomeBF16(weights * copies);
    const std::vector<float> x = RandomFloats(int64_t{num_rows} * k);
    std::vector<float> y(int64_t{num_rows} * n);
    const double seconds = BestSeconds([&](int run) {
      cpu::GroupedGemm({.x = x.data(),
                        .w = &w[run % copies * weights],
                        .expert_offsets = offsets.data(),
                        .y = y.data(),
                        .num_experts = kNumExperts,
                        .num_rows = num_rows,
                        .n = n,
                        .k = k,
                        .w_dtype = DType::kBF16});
    });
    Add(absl::StrCat("grouped_gemm ", name, " tokens=", num_tokens), seconds,
        2.0 * num_rows * n * k, 2.0 * active * n * k + 4.0 * num_rows * (n + k));
  }

  // num_seqs sequences of num_q queries and seqlen keys, of which `shared` are read once for all.
  void Attention(const std::string& name, int num_seqs, int num_q, int seqlen, int shared,
                 DType kv_dtype) {
    const int max_blocks = (seqlen + kBlockSize - 1) / kBlockSize;
    const int blocks_per_run = num_seqs * max_blocks;
    const int64_t block_elements = int64_t{kNumKvHeads} * kBlockSize * kHeadDim;
    const int64_t block_bytes = block_elements * static_cast<int64_t>(SizeOf(kv_dtype));
    const int copies =
        std::max<int>(1, static_cast<int>(kWorkingSetBytes / (2 * block_bytes * blocks_per_run)));
    const std::vector<uint16_t> cache = SomeBF16(copies * blocks_per_run * block_bytes);
    const uint16_t* const v_cache = &cache[cache.size() / 2];

    std::vector<int32_t> tables(blocks_per_run * copies), cu_seqlens_q(num_seqs + 1);
    std::iota(tables.begin(), tables.end(), 0);
    for (int s = 0; s <= num_seqs; ++s) cu_seqlens_q[s] = s * num_q;
    const std::vector<int32_t> seqlens(num_seqs, seqlen), own_begin(num_seqs, shared);
    const SharedNode node = {0, num_seqs, 0, shared};
    const int num_tokens = num_seqs * num_q, width = kNumHeads * kHeadDim;
    const std::vector<float> q = RandomFloats(int64_t{num_tokens} * width);
    std::vector<float> o(q.size());
    const double seconds = BestSeconds([&](int run) {
      const int32_t* block_tables = &tables[run % copies * blocks_per_run];
      cpu::PagedAttention({.q = q.data(),
                           .k_cache = cache.data(),
                           .v_cache = v_cache,
                           .block_tables = block_tables,
                           .cu_seqlens_q = cu_seqlens_q.data(),
                           .seqlens_kv = seqlens.data(),
                           .nodes = &node,
                           .own_begin = own_begin.data(),
                           .o = o.data(),
                           .num_seqs = num_seqs,
                           .num_nodes = shared > 0 ? 1 : 0,
                           .num_heads = kNumHeads,
                           .num_kv_heads = kNumKvHeads,
                           .head_dim = kHeadDim,
                           .block_size = kBlockSize,
                           .max_blocks = max_blocks,
                           .q_stride = width,
                           .sm_scale = 0.088f,
                           .kv_dtype = kv_dtype});
    });
    // A query sees seqlen keys less those of the queries after it.
    const double pairs = 1.0 * num_tokens * (seqlen - (num_q - 1) / 2.0);
    const double blocks_read = 1.0 / kBlockSize * (shared + num_seqs * (seqlen - shared));
    Add(name, seconds, 4.0 * pairs * width,
        blocks_read * 2 * block_bytes + 8.0 * num_tokens * width);
  }

  void Sample(int num_rows) {
    const std::vector<float> logits = RandomFloats(int64_t{num_rows} * kVocab);
    std::vector<SamplingRow> rows(num_rows);
    for (int r = 0; r < num_rows; ++r) {
      rows[r] = {.logits_row = r, .temperature = 0.8f, .top_p = 0.95f, .choice = r};
    }
    std::vector<int32_t> tokens(num_rows);
    const double seconds = BestSeconds([&](int) {
      cpu::Sample({.logits = logits.data(),
                   .rows = rows.data(),
                   .tokens = tokens.data(),
                   .num_rows = num_rows,
                   .vocab_size = kVocab});
    });
    Add(absl::StrCat("sample top_p rows=", num_rows), seconds, 0, 4.0 * num_rows * kVocab);
  }

  const BenchResults& results() const { return results_; }

 private:
  void Add(const std::string& name, double seconds, double flops, double bytes) {
    const double floor = std::max(flops / (gflops_ * 1e9), bytes / (gbps_ * 1e9));
    results_.cases.push_back({name, seconds * 1e6, "us", floor * 1e6});
    std::printf("%-32s %10.1f %10.1f %7.2f %9.1f %8.1f\n", name.c_str(), seconds * 1e6, floor * 1e6,
                seconds / floor, flops / seconds * 1e-9, bytes / seconds * 1e-9);
  }

  BenchResults results_;
  double gflops_ = 0, gbps_ = 0;
};

int Main() {
  if (absl::GetFlag(FLAGS_threads) > 0) cpu::SetNumThreads(absl::GetFlag(FLAGS_threads));
  Bench bench;
  for (int m : {1, 4, 16, 64, 512}) {
    bench.Gemm("qkv", m, (kNumHeads + 2 * kNumKvHeads) * kHeadDim, kHidden);
    bench.Gemm("lm_head", m, kVocab, kHidden);
  }
  for (int tokens : {1, 16, 512}) {
    bench.GroupedGemm("gate_up", tokens, 2 * kIntermediate, kHidden);
    bench.GroupedGemm("down", tokens, kHidden, kIntermediate);
  }
  for (const auto& [suffix, kv_dtype] : {std::pair{"", DType::kBF16}, {" e4m3", DType::kF8E4M3}}) {
    const auto add = [&](const char* name, int num_seqs, int num_q, int seqlen, int shared) {
      bench.Attention(absl::StrCat(name, suffix), num_seqs, num_q, seqlen, shared, kv_dtype);
    };
    add("prefill 512", 1, 512, 512, 0);
    add("decode 1 x 1024", 1, 1, 1024, 0);
    add("decode 16 x 1024", 16, 1, 1024, 0);
    add("shared 16 x (960 + 64)", 16, 1, 1024, 960);
  }
  bench.Sample(16);
  const std::string out = absl::GetFlag(FLAGS_out);
  return out.empty() || WriteFile(out, ToJson(bench.results())) ? 0 : 1;
}

}  // namespace
}  // namespace bough

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  return bough::Main();
}
