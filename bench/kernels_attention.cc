// Times the CUDA attention at the shapes of Mixtral-8x7B and the 7B models:
//
//   bench-kernels-attention --list | python3 bench/attention_peers.py --out=peers.json
//   bench-kernels-attention --peers=peers.json --out=bench/results/h200/kernels_attention.json
//
// Cases: attention_cases.h; how each is timed: attention_run.h. The peers (what torch has for the same
// shapes, on the same GPU) are measured by the first command; without them the second one measures
// ours alone. Ends with 1 when a case's error is beyond what its precision allows.
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "bench/attention_cases.h"
#include "bench/attention_run.h"
#include "bench/device_ceilings.h"
#include "bench/results.h"
#include "common/check.h"
#include "kernels/cuda/cuda_check.h"

ABSL_FLAG(bool, list, false, "print what peers may measure, a line each, and exit");
ABSL_FLAG(std::string, peers, "", "JSON of attention_peers.py; empty: none");
ABSL_FLAG(std::string, only, "", "cases whose names contain this; empty: all");
ABSL_FLAG(std::string, out, "", "path of the JSON file; empty: print only");
ABSL_FLAG(std::string, git, "", "commit, where the working directory is no checkout");

namespace bough {
namespace {

constexpr int64_t kKvBytes = int64_t{8} << 30;
constexpr double kReadTbPerSecond = 4.6;
// Of e4m3 products: 2^-4 / sqrt(3) rms of q and of the weights each, 3.6e-2 in all.
constexpr double kMaxFp8Error = 4e-2, kMaxError = 1e-2;

std::string DeviceName() {
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  return properties.name;
}

class Bench {
 public:
  explicit Bench(std::string command) : kv_(kKvBytes) {
    results_.scenario = "kernels_attention";
    results_.command = std::move(command);
    results_.git = absl::GetFlag(FLAGS_git);
    results_.device = DeviceName();
    results_.ceilings = {{"read_gbps", MeasureDeviceReadGbps()},
                         {"copy_gbps", MeasureDeviceCopyGbps()}};
    results_.reference_ceilings = {
        {"read_gbps", 1e3 * kReadTbPerSecond}, {"fp8_gflops", 1.45e6}, {"bf16_gflops", 774e3}};
    ReadPeers();
    std::printf("%s\n", results_.device.c_str());
    for (const auto& [name, value] : results_.ceilings) {
      std::printf("%s %.0f\n", name.c_str(), value);
    }
  }

  int Main() {
    for (const AttentionCase& c : AttentionCases()) {
      if (!absl::StrContains(c.name(), absl::GetFlag(FLAGS_only))) continue;
      if (c.kv_dtype() != filled_) kv_.FillNormal(filled_ = c.kv_dtype());
      Run(c);
    }
    const std::string out = absl::GetFlag(FLAGS_out);
    const bool written = out.empty() || WriteFile(out, ToJson(results_));
    return written && all_right_ ? 0 : 1;
  }

 private:
  // {"ceilings": {name: value}, "peers": {case's peer_key: {peer: us}}}
  void ReadPeers() {
    const std::string path = absl::GetFlag(FLAGS_peers);
    if (path.empty()) return;
    std::ifstream file(path);
    CHECK(file.good()) << path;
    const nlohmann::json json = nlohmann::json::parse(file);
    for (const auto& [name, value] : json.at("ceilings").items()) {
      results_.ceilings[name] = value.get<double>();
    }
    peers_ = json.at("peers").get<decltype(peers_)>();
  }

  void Run(const AttentionCase& c) {
    AttentionRun run(c, kv_);
    const double us = run.LayerUs(), plan_us = run.PlanUs(), error = run.RelativeError();
    BenchCase result = {.name = c.name(), .value = us, .unit = "us", .floor = c.floor_us()};
    if (c.gate_us > 0) result.gate = c.gate_us;
    const double tb_per_second = static_cast<double>(c.kv_bytes()) / us * 1e-6;
    result.more = {{"kv_tb_per_s", tb_per_second},
                   {"share_of_read_ceiling", tb_per_second / kReadTbPerSecond},
                   {"tflops", c.flops() / us * 1e-6},
                   {"relative_error", error},
                   {"plan_us", plan_us}};
    if (c.compares) {
      result.peer = "plain attention";
      result.peer_value = run.LayerUs(false);
      if (c.gate_over_plain > 0) result.gate = c.gate_over_plain * result.peer_value;
    } else {
      AddPeers(c, &result);
    }
    const bool right = error <= (c.fp8_products() ? kMaxFp8Error : kMaxError);
    all_right_ = all_right_ && right;
    Print(result, right);
    results_.cases.push_back(std::move(result));
  }

  // The quickest is the peer; the others' times stand beside it.
  void AddPeers(const AttentionCase& c, BenchCase* result) const {
    const auto found = peers_.find(c.peer_key());
    if (found == peers_.end()) return;
    for (const auto& [name, us] : found->second) {
      if (result->peer.empty() || us < result->peer_value) {
        result->peer = name;
        result->peer_value = us;
      }
    }
    for (const auto& [name, us] : found->second) {
      if (name != result->peer) result->more.emplace_back(absl::StrCat(name, ", us"), us);
    }
    if (c.kind == "decode" && c.precision == AttentionPrecision::kBF16) {
      result->gate = result->peer_value;
    }
  }

  static void Print(const BenchCase& c, bool right) {
    std::printf("%-52s %8.1f us  floor x %5.2f", c.name.c_str(), c.value, c.value / c.floor);
    for (const auto& [name, value] : c.more) {
      if (!absl::StrContains(name, ',')) std::printf("  %s %.3g", name.c_str(), value);
    }
    if (c.gate) std::printf("  %s %.1f", c.value <= *c.gate ? "keeps" : "MISSES", *c.gate);
    if (!c.peer.empty()) std::printf("  %s %.1f us", c.peer.c_str(), c.peer_value);
    std::printf("%s\n", right ? "" : "  WRONG");
    std::fflush(stdout);
  }

  const GpuMemory kv_;
  DType filled_ = DType::kF32;  // what kv_ holds; at first nothing that a case takes
  std::map<std::string, std::map<std::string, double>> peers_;
  BenchResults results_;
  bool all_right_ = true;
};

// Shapes that torch's ops take: one length, at most one shared context.
void PrintList() {
  for (const AttentionCase& c : AttentionCases()) {
    const bool bf16 = c.precision == AttentionPrecision::kBF16;
    if (!bf16 || c.compares || c.kind == "speculate" || absl::StrContains(c.shape, "skew") ||
        (c.kind == "prefill" && c.num_q != c.seqlens[0])) {
      continue;
    }
    std::printf("%s %d %d %d %d %d %d\n", c.peer_key().c_str(), c.num_heads, c.num_kv_heads,
                c.num_seqs(), c.num_q, c.own_begin[0], c.seqlens[0] - c.own_begin[0]);
  }
}

}  // namespace
}  // namespace bough

int main(int argc, char** argv) {
  const std::string command = bough::CommandLine(argc, argv);
  absl::ParseCommandLine(argc, argv);
  if (absl::GetFlag(FLAGS_list)) {
    bough::PrintList();
    return 0;
  }
  return bough::Bench(command).Main();
}
