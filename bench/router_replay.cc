// Placement rules against a trace in simulated time: the router's own policy code beside other routers'
// rules (router_replay_rules.h), on groups that compute, cache and evict (router_replay_group.h).
//
//   bench-router-replay --trace=mooncake_conversation.jsonl --out=bench/results/cpu/router_replay.json
//     --plots=bench/results/cpu/plots
//   bench-router-replay --requests=2000                      a trace of generated conversations
//
// Figures are means over --seeds runs, which differ in the jitter of arrivals and in every lot drawn.
// Prompt blocks only are cached, so the oracle is: one LRU cache of all the groups' blocks, prompts only.
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/bar_plot.h"
#include "bench/results.h"
#include "bench/router_replay_sim.h"

ABSL_FLAG(std::string, trace, "", "file in Mooncake's format; empty: generated conversations");
ABSL_FLAG(int, requests, 0, "of the trace, at most; 0 = all (of generated ones: 6,000)");
ABSL_FLAG(double, jitter, 3, "s; arrivals of the trace + U(0, jitter)");
ABSL_FLAG(std::vector<std::string>, loads, std::vector<std::string>({"0.6", "1.0", "1.3"}),
          "speeds at which the trace is played");
ABSL_FLAG(std::vector<std::string>, routers, std::vector<std::string>({"1", "4"}),
          "numbers of routers");
ABSL_FLAG(int, groups, 8, "worker groups");
ABSL_FLAG(int, kv_blocks, 6000, "KV blocks of 512 tokens per group");
ABSL_FLAG(double, prefill_tokens_per_second, 7000, "per group");
ABSL_FLAG(int, seeds, 3, "runs per figure");
ABSL_FLAG(bool, variants, true, "other cache sizes, groups and workloads too, at the first load");
ABSL_FLAG(std::string, plots, "", "folder for SVG plots; empty: none");
ABSL_FLAG(std::string, out, "", "path of the JSON file; empty: print only");
ABSL_FLAG(std::string, git, "", "commit, where the working directory is no checkout");

namespace bough {
namespace {

struct Policy {
  std::string name, title;
  ReplayRule rule = ReplayRule::kBough;
  bool held = false;  // requests wait in the router's admission queue
  bool decode_term = true, price_sharing = true;
};

std::vector<Policy> Policies() {
  std::vector<Policy> policies;
  for (const ReplayRuleName& r : AllReplayRules()) policies.push_back({r.name, r.title, r.rule});
  policies.push_back({"bough_held", "bough, bound late", ReplayRule::kBough, /*held=*/true});
  return policies;
}

struct Workload {
  std::string name;  // prefix of its cases
  ReplayTrace trace;
  double jitter_seconds = 0;
};

// Means over seeds; the oracle's beside them.
struct Figures {
  ReplayMetrics m;
  ReplayOracle oracle;
  double hit_of_oracle = 0;
};

constexpr double ReplayMetrics::*kAveraged[] = {
    &ReplayMetrics::hit,       &ReplayMetrics::ttft_mean, &ReplayMetrics::ttft_p50,
    &ReplayMetrics::ttft_p90,  &ReplayMetrics::ttft_p99,  &ReplayMetrics::tpot_mean,
    &ReplayMetrics::tpot_p99,  &ReplayMetrics::goodput,   &ReplayMetrics::rejects,
    &ReplayMetrics::imbalance, &ReplayMetrics::refused};

Figures Run(const Workload& workload, const Policy& policy, ReplayOptions options, double load) {
  Figures f;
  const int num_seeds = absl::GetFlag(FLAGS_seeds);
  options.rule = policy.rule;
  if (policy.held) options.admission.emplace();
  options.price_sharing = policy.price_sharing;
  if (!policy.decode_term) options.coefficients.decode_weight = 0;
  for (int seed = 1; seed <= num_seeds; ++seed) {
    options.seed = seed;
    const ReplayTrace trace = ScaleTrace(workload.trace, workload.jitter_seconds, load, seed);
    const ReplayMetrics m = Replay(trace, options);
    for (auto field : kAveraged) f.m.*field += m.*field / num_seeds;
    const ReplayOracle oracle = PooledOracle(trace, options);
    f.oracle.hit += oracle.hit / num_seeds;
    f.oracle.ttft_mean += oracle.ttft_mean / num_seeds;
  }
  f.hit_of_oracle = f.m.hit / f.oracle.hit;
  return f;
}

void PrintHeader(const std::string& title) {
  std::printf("\n%s\n%-24s %6s %7s %7s %7s %7s %8s %8s %8s %7s %7s %7s\n", title.c_str(), "policy",
              "hit%", "of orac", "TTFT s", "p90", "p99", "TPOT ms", "p99", "good/s", "max/avg",
              "refus%", "reject%");
}

void Print(const Policy& policy, const Figures& f) {
  std::printf("%-24s %6.1f %7.1f %7.3f %7.2f %7.2f %8.2f %8.1f %8.3f %7.2f %7.2f %7.2f\n",
              policy.title.c_str(), 100 * f.m.hit, 100 * f.hit_of_oracle, f.m.ttft_mean,
              f.m.ttft_p90, f.m.ttft_p99, 1e3 * f.m.tpot_mean, 1e3 * f.m.tpot_p99, f.m.goodput,
              f.m.imbalance, 100 * f.m.refused, 100 * f.m.rejects);
  std::fflush(stdout);
}

void AddCases(const std::string& prefix, const Figures& f, BenchResults* results) {
  const ReplayMetrics& m = f.m;
  auto add = [&](const char* name, double value, const char* unit, double floor = 0) {
    results->cases.push_back({absl::StrCat(prefix, "/", name), value, unit, floor});
  };
  add("ttft_mean_s", m.ttft_mean, "s", f.oracle.ttft_mean);
  add("ttft_p90_s", m.ttft_p90, "s");
  add("ttft_p99_s", m.ttft_p99, "s");
  add("tpot_mean_ms", 1e3 * m.tpot_mean, "ms");
  add("tpot_p99_ms", 1e3 * m.tpot_p99, "ms");
  add("hit_of_oracle", f.hit_of_oracle, "ratio");
  add("goodput_per_s", m.goodput, "requests/s");
  add("rejects", m.rejects, "ratio");
  add("imbalance", m.imbalance, "max/mean");
  add("refused_once", m.refused, "ratio");
}

ReplayOptions BaseOptions() {
  ReplayOptions options;
  options.num_groups = absl::GetFlag(FLAGS_groups);
  options.group.kv_blocks = absl::GetFlag(FLAGS_kv_blocks);
  options.group.token_seconds = 1 / absl::GetFlag(FLAGS_prefill_tokens_per_second);
  return options;
}

// [policy][load], of one number of routers.
using Grid = std::vector<std::vector<Figures>>;

void WritePlots(const std::string& folder, const std::vector<Policy>& policies, const Grid& grid) {
  BarPlot plot;
  for (const Policy& p : policies) {
    plot.rows.push_back(p.title);
    plot.highlighted.push_back(p.rule == ReplayRule::kBough);
  }
  for (const std::string& load : absl::GetFlag(FLAGS_loads)) plot.bars.push_back("load " + load);
  auto panel = [&](const char* title, int digits, auto value) {
    BarPanel out{title, {}, digits};
    for (const std::vector<Figures>& row : grid) {
      out.values.emplace_back();
      for (const Figures& f : row) out.values.back().push_back(value(f));
    }
    return out;
  };
  plot.title = "Time to first token, by placement rule";
  plot.note = absl::StrFormat("%d groups in simulated time, one router; means of %d runs",
                              absl::GetFlag(FLAGS_groups), absl::GetFlag(FLAGS_seeds));
  plot.panels = {panel("mean, s", 2, [](const Figures& f) { return f.m.ttft_mean; }),
                 panel("90th percentile, s", 1, [](const Figures& f) { return f.m.ttft_p90; }),
                 panel("99th percentile, s", 1, [](const Figures& f) { return f.m.ttft_p99; }),
                 panel("hits, % of the pooled oracle", 1,
                       [](const Figures& f) { return 100 * f.hit_of_oracle; })};
  WriteFile(folder + "/router_replay_ttft.svg", ToSvg(plot));
  plot.title = "Decoding, goodput and balance, by placement rule";
  plot.panels = {
      panel("mean TPOT, ms", 1, [](const Figures& f) { return 1e3 * f.m.tpot_mean; }),
      panel("good requests/s", 2, [](const Figures& f) { return f.m.goodput; }),
      panel("rejected, %", 1, [](const Figures& f) { return 100 * f.m.rejects; }),
      panel("prefill, max group / mean", 2, [](const Figures& f) { return f.m.imbalance; })};
  WriteFile(folder + "/router_replay_service.svg", ToSvg(plot));
}

void RunGrid(const Workload& workload, int num_routers, BenchResults* results, Grid* grid) {
  const std::vector<Policy> policies = Policies();
  grid->assign(policies.size(), {});
  ReplayOptions options = BaseOptions();
  options.num_routers = num_routers;
  for (const std::string& load : absl::GetFlag(FLAGS_loads)) {
    PrintHeader(absl::StrFormat("%s, load %s, %d router(s)", workload.name, load, num_routers));
    for (size_t p = 0; p < policies.size(); ++p) {
      const Figures f = Run(workload, policies[p], options, std::stod(load));
      Print(policies[p], f);
      AddCases(absl::StrFormat("policy=%s/load=%s/routers=%d", policies[p].name, load, num_routers),
               f, results);
      (*grid)[p].push_back(f);
    }
    std::printf("%-24s %6.1f %7.1f %7.3f\n", "oracle, without a wait",
                100 * (*grid)[0].back().oracle.hit, 100.0, (*grid)[0].back().oracle.ttft_mean);
  }
}

// One workload at its own speed under one router, all rules.
void RunVariant(const std::string& name, const Workload& workload, const ReplayOptions& options,
                double load, std::vector<Policy> policies, BenchResults* results) {
  PrintHeader(name);
  for (const Policy& p : policies) {
    const Figures f = Run(workload, p, options, load);
    Print(p, f);
    AddCases(absl::StrFormat("%s/policy=%s", name, p.name), f, results);
  }
}

// At a load that the groups cannot carry: with deadlines, admission refuses at once what cannot make it.
void RunDeadlines(const Workload& workload, BenchResults* results) {
  ReplayOptions options = BaseOptions();
  std::vector<Policy> policies = Policies();
  RunVariant("overload", workload, options, 2.5, policies, results);
  options.deadline_seconds = 10;
  policies = {policies.back()};
  policies[0].name = "bough_held_deadline_10s";
  policies[0].title = "bough, 10 s or refused";
  RunVariant("overload", workload, options, 2.5, policies, results);
}

void RunVariants(const Workload& workload, BenchResults* results) {
  const std::vector<Policy> policies = Policies();
  ReplayOptions options = BaseOptions();
  options.group.kv_blocks /= 3;
  RunVariant("third_of_the_cache", workload, options, 1, policies, results);
  options = BaseOptions();
  options.num_groups *= 2;
  RunVariant("twice_the_groups_and_load", workload, options, 2, policies, results);
  options = BaseOptions();
  // At 49,000 tokens of context Mixtral's attention is as much work as all else.
  options.group.pair_seconds = options.group.token_seconds / 49000;
  RunVariant("attention_costs", workload, options, 1, policies, results);
  options = BaseOptions();
  RunVariant("conversations", {"", MakeConversations({.num_requests = 6000}, 1), 0}, options, 1,
             policies, results);
  std::vector<Policy> more = policies;
  more.push_back(
      {"bough_no_sharing", "bough, sharing unpriced", ReplayRule::kBough, false, true, false});
  more.push_back(
      {"bough_no_decode_term", "bough, no decode term", ReplayRule::kBough, false, false});
  RunVariant("shared_contexts", {"", MakeSharedContexts({}, 1), 0}, options, 1, more, results);
  SharedContextSpec samples;
  samples.requests_per_second /= 4;
  samples.num_choices = 4;
  RunVariant("shared_contexts_n4", {"", MakeSharedContexts(samples, 1), 0}, options, 1, more,
             results);
  RunDeadlines(workload, results);
}

int Main(int argc, char** argv) {
  BenchResults results;
  results.scenario = "router_replay";
  results.device = "simulated";
  results.command = CommandLine(argc, argv);
  absl::ParseCommandLine(argc, argv);
  results.git = absl::GetFlag(FLAGS_git);

  const std::string path = absl::GetFlag(FLAGS_trace);
  const int limit = absl::GetFlag(FLAGS_requests);
  Workload workload{"conversations", {}, 0};
  if (path.empty()) {
    workload.trace = MakeConversations({.num_requests = limit > 0 ? limit : 6000}, 1);
  } else {
    auto trace = ReadReplayTrace(path, limit);
    if (!trace.ok()) {
      std::fprintf(stderr, "%s\n", std::string(trace.status().message()).c_str());
      return 1;
    }
    workload = {"trace", *std::move(trace), absl::GetFlag(FLAGS_jitter)};
  }
  bool plotted = false;
  for (const std::string& routers : absl::GetFlag(FLAGS_routers)) {
    Grid grid;
    RunGrid(workload, std::stoi(routers), &results, &grid);
    const std::string plots = absl::GetFlag(FLAGS_plots);
    if (!plots.empty() && !plotted) WritePlots(plots, Policies(), grid);
    plotted = true;
  }
  if (absl::GetFlag(FLAGS_variants)) RunVariants(workload, &results);
  const std::string out = absl::GetFlag(FLAGS_out);
  return out.empty() || WriteFile(out, ToJson(results)) ? 0 : 1;
}

}  // namespace
}  // namespace bough

int main(int argc, char** argv) { return bough::Main(argc, argv); }
