// How fast the router decides: prefix index and policy, while another thread writes into the index.
//
//   bench-router-index [--millions=10,100] [--out=bench/results/cpu/router_index.json]
//
// A decision: the depth of a prompt of 64-512 blocks in all 64 groups and the cost of each of them
// (PrefixIndex::Match, PlaceRequest over views that lie ready), the prompt's hashes given, one at a
// time, each timed. match_* is the first half alone. Rates are per second of one core's time.
//
// The index holds conversations of 64-512 blocks, which begin with one of 256 system prompts of 4-32
// blocks; each is held by one to three groups, by the second and third in part. A prompt is a part of a
// conversation, or all of it and new blocks. Events: the oldest conversations leave, leaf first, as new
// ones come, in deltas of up to 256 blocks, at --events blocks/s.

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "bench/results.h"
#include "common/check.h"
#include "router/policy.h"
#include "router/prefix_index.h"

ABSL_FLAG(std::vector<std::string>, millions, (std::vector<std::string>{"10", "100"}),
          "Millions of blocks in the index, one after the other; 40 MB each.");
ABSL_FLAG(double, events, 1e6, "Blocks per second stored or removed while decisions are timed.");
ABSL_FLAG(int, decisions, 500000, "Decisions timed, for each size.");
ABSL_FLAG(std::string, git, "", "Commit that is measured. Empty: asked of git.");
ABSL_FLAG(std::string, out, "", "Results file. Empty: print only.");

namespace bough::router {
namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kDeltaBlocks = 256;
constexpr int kNumSystemPrompts = 256;

double Seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

// Of this thread alone: what a rate per core means, whoever else runs here.
double CpuSeconds() {
  timespec time = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// As good as hashes, without keeping any.
BlockHash Block(uint64_t owner, uint64_t i) {
  const uint64_t x = owner << 24 | i;
  return {Mix(x + 0x9e3779b97f4a7c15), Mix(x ^ 0xd6e8feb86659fd93)};
}

struct Conversation {
  explicit Conversation(uint64_t id) : id(id) {
    const uint64_t r = Mix(id + 1);
    num_blocks = static_cast<int>(64 + r % 449);
    system_prompt = r >> 16 & (kNumSystemPrompts - 1);
    num_shared = static_cast<int>(4 + Mix(system_prompt) % 29);
    num_holders = static_cast<int>(1 + (r >> 24) % 3);
    for (int i = 0; i < num_holders; ++i) {
      group[i] = static_cast<int>(((r >> 32) + i * (1 + (r >> 40) % 20)) % kMaxGroups);
      depth[i] =
          i == 0 ? num_blocks : static_cast<int>(num_blocks * ((r >> (48 + 4 * i)) % 16) / 16);
    }
  }
  BlockHash At(int i) const { return i < num_shared ? Block(~system_prompt, i) : Block(id, i); }

  uint64_t id, system_prompt;
  int num_blocks, num_shared, num_holders;
  int group[3], depth[3];
};

// What some group stored or removed, in one delta at most kDeltaBlocks long.
struct Event {
  int group = 0;
  bool stored = false;
  std::vector<BlockHash> blocks;
};

// System prompts stay; only a conversation's own blocks come and go.
void AppendEvents(const Conversation& c, bool stored, std::vector<Event>* events) {
  for (int h = 0; h < c.num_holders; ++h) {
    Event event = {c.group[h], stored, {}};
    for (int i = c.num_shared; i < c.depth[h]; ++i) {
      event.blocks.push_back(c.At(stored ? i : c.depth[h] - 1 - (i - c.num_shared)));
      if (event.blocks.size() == kDeltaBlocks) {
        events->push_back(event);
        event.blocks.clear();
      }
    }
    if (!event.blocks.empty()) events->push_back(std::move(event));
  }
}

void Apply(const Event& event, PrefixIndex* index) {
  if (event.stored) {
    index->Add(event.group, event.blocks);
  } else {
    index->Remove(event.group, event.blocks);
  }
}

double ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  double pages = 0, resident = 0;
  statm >> pages >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

// The index and the conversations in it: ids [oldest, newest).
class Workload {
 public:
  explicit Workload(size_t num_blocks) : index_(num_blocks + num_blocks / 50) {
    const double before = ResidentBytes();
    for (uint64_t s = 0; s < kNumSystemPrompts; ++s) {
      std::vector<BlockHash> blocks;
      for (int i = 0; i < 32; ++i) blocks.push_back(Block(~s, i));
      for (int g = 0; g < kMaxGroups; ++g) index_.Add(g, blocks);
    }
    std::vector<Event> events;
    while (index_.size() < num_blocks) {
      events.clear();
      AppendEvents(Conversation(newest_++), true, &events);
      for (const Event& event : events) Apply(event, &index_);
    }
    resident_per_block_ = (ResidentBytes() - before) / static_cast<double>(index_.size());
  }

  // Of one conversation that comes and one that goes.
  std::vector<Event> NextEvents() {
    std::vector<Event> events;
    AppendEvents(Conversation(oldest_++), false, &events);
    AppendEvents(Conversation(newest_++), true, &events);
    return events;
  }

  // A prompt to place, given random numbers.
  void MakePrompt(uint64_t random, std::vector<BlockHash>* prompt) const {
    const uint64_t oldest = oldest_.load(std::memory_order_relaxed);
    const uint64_t newest = newest_.load(std::memory_order_relaxed);
    const Conversation c(oldest + Mix(random) % (newest - oldest));
    const int num_blocks = static_cast<int>(64 + Mix(random + 1) % 449);
    prompt->clear();
    for (int i = 0; i < num_blocks; ++i) {
      prompt->push_back(i < c.num_blocks ? c.At(i) : Block(~random, i));
    }
  }

  PrefixIndex& index() { return index_; }
  double resident_per_block() const { return resident_per_block_; }

 private:
  PrefixIndex index_;
  std::atomic<uint64_t> oldest_ = 0, newest_ = 0;
  double resident_per_block_ = 0;
};

std::vector<GroupView> BusyGroups() {
  std::vector<GroupView> views(kMaxGroups);
  for (int g = 0; g < kMaxGroups; ++g) {
    views[g].accepting = true;
    views[g].drain_seconds = 0.01 * (g % 7);
    views[g].prefill_seconds_per_token = 1e-5;
    views[g].decode_seconds_per_block = 1e-8;
    views[g].busy_share = 0.5;
    views[g].total_blocks = 200000;
    views[g].free_blocks = 1000 + g;
    views[g].requests = views[g].rows = 10 + g % 5;
    views[g].active_unique_blocks = 3000;
  }
  return views;
}

// The group chosen.
int Decide(const PrefixIndex& index, const std::vector<BlockHash>& prompt,
           const PolicyCoefficients& coefficients, std::vector<GroupView>* views,
           Clock::time_point* matched = nullptr) {
  const RouteQuery query = {.prompt_tokens = static_cast<int>(prompt.size()) * kBlockSize,
                            .max_tokens = 256};
  const GroupDepths depths = index.Match(prompt);
  if (matched != nullptr) *matched = Clock::now();
  for (int g = 0; g < kMaxGroups; ++g) (*views)[g].matched_blocks = depths[g];
  return PlaceRequest(query, *views, coefficients).chosen;
}

// Seconds of each, and of the match alone.
struct Decisions {
  std::vector<double> decision, match;
};

Decisions TimeDecisions(const Workload& workload, const PrefixIndex& index, int num_decisions) {
  const PolicyCoefficients coefficients;
  std::vector<GroupView> views = BusyGroups();
  std::vector<BlockHash> prompt;
  Decisions out;
  int64_t chosen = 0;
  for (int i = 0; i < num_decisions; ++i) {
    workload.MakePrompt(uint64_t{1000003} * i, &prompt);
    Clock::time_point matched;
    const Clock::time_point start = Clock::now();
    chosen += Decide(index, prompt, coefficients, &views, &matched);
    const Clock::time_point end = Clock::now();
    out.decision.push_back(Seconds(end - start));
    out.match.push_back(Seconds(matched - start));
  }
  CHECK_GT(chosen, 0);
  return out;
}

// Decisions per second of CPU, their prompts made beforehand, a few at a time.
double DecisionRate(const Workload& workload, const PrefixIndex& index, int num_decisions) {
  constexpr int kAtOnce = 32;
  const PolicyCoefficients coefficients;
  std::vector<GroupView> views = BusyGroups();
  std::array<std::vector<BlockHash>, kAtOnce> prompts;
  double seconds = 0;
  int64_t chosen = 0;
  for (int i = 0; i < num_decisions; i += kAtOnce) {
    for (int k = 0; k < kAtOnce; ++k) {
      workload.MakePrompt(uint64_t{1000033} * (i + k), &prompts[k]);
    }
    const double start = CpuSeconds();
    for (const std::vector<BlockHash>& prompt : prompts) {
      chosen += Decide(index, prompt, coefficients, &views);
    }
    seconds += CpuSeconds() - start;
  }
  CHECK_GT(chosen, 0);
  return num_decisions / kAtOnce * kAtOnce / seconds;
}

double Quantile(std::vector<double>* values, double q) {
  const auto at = values->begin() + static_cast<int64_t>(q * (values->size() - 1));
  std::nth_element(values->begin(), at, values->end());
  return *at;
}

// Applies events at a rate (blocks/s) until `stop`; returns the rate reached.
double Churn(Workload* workload, double rate, const std::atomic<bool>& stop) {
  const Clock::time_point start = Clock::now();
  double num_blocks = 0;
  while (!stop) {
    for (const Event& event : workload->NextEvents()) {
      Apply(event, &workload->index());
      num_blocks += static_cast<double>(event.blocks.size());
      while (num_blocks > rate * Seconds(Clock::now() - start) && !stop) std::this_thread::yield();
    }
  }
  return num_blocks / Seconds(Clock::now() - start);
}

// Blocks per second of CPU that one thread applies, of `num_blocks`, making the events not counted.
double TimeApply(Workload* workload, double num_blocks) {
  double applied = 0, seconds = 0;
  while (applied < num_blocks) {
    std::vector<Event> events;
    for (int i = 0; i < 100; ++i) {
      for (Event& event : workload->NextEvents()) events.push_back(std::move(event));
    }
    const double start = CpuSeconds();
    for (const Event& event : events) {
      Apply(event, &workload->index());
      applied += static_cast<double>(event.blocks.size());
    }
    seconds += CpuSeconds() - start;
  }
  return applied / seconds;
}

// Snapshots of 8 groups, hashes as they come off the wire, into an empty index. `announced`: the groups
// said before how many blocks they have room for.
double TimeColdStart(size_t num_blocks, bool announced) {
  constexpr int kGroups = 8;
  constexpr size_t kChunk = 4096;
  PrefixIndex index;
  if (announced) index.Reserve(num_blocks);
  double seconds = 0;
  for (int g = 0; g < kGroups; ++g) {
    std::vector<BlockHash> blocks;
    for (size_t i = 0; i < num_blocks / kGroups; ++i) blocks.push_back(Block(g, i));
    const Clock::time_point start = Clock::now();
    for (size_t i = 0; i < blocks.size(); i += kChunk) {
      index.Add(g, std::span(blocks).subspan(i, std::min(kChunk, blocks.size() - i)));
    }
    seconds += Seconds(Clock::now() - start);
  }
  CHECK_EQ(index.size(), num_blocks / kGroups * kGroups);
  return seconds;
}

class Bench {
 public:
  explicit Bench(const std::string& command) {
    results_.scenario = "router_index";
    results_.device = CpuName();
    results_.command = command;
    results_.git = absl::GetFlag(FLAGS_git);
  }

  // Goals are upper limits of times and sizes, lower ones of rates.
  void Add(const std::string& name, double value, const std::string& unit,
           std::optional<double> goal = {}) {
    results_.cases.push_back({.name = name, .value = value, .unit = unit, .gate = goal});
    std::printf("%-34s %12.4g %-12s", name.c_str(), value, unit.c_str());
    if (goal) std::printf(" goal %g", *goal);
    std::printf("\n");
    std::fflush(stdout);
  }

  void Run(int millions) {
    const std::string prefix = absl::StrCat("blocks=", millions, "M/");
    const bool small = millions <= 10;
    Workload workload(size_t{1000000} * millions);
    Add(prefix + "bytes_per_block", workload.resident_per_block(), "B", 40);
    Add(prefix + "apply/blocks_per_s", TimeApply(&workload, 5e6), "blocks/s", 5e6);

    TimeDecisions(workload, workload.index(), 1000);
    std::atomic<bool> stop = false;
    double rate = 0;
    std::thread events([&] { rate = Churn(&workload, absl::GetFlag(FLAGS_events), stop); });
    Decisions d = TimeDecisions(workload, workload.index(), absl::GetFlag(FLAGS_decisions));
    const double decisions_per_s =
        DecisionRate(workload, workload.index(), absl::GetFlag(FLAGS_decisions));
    stop = true;
    events.join();
    Add(prefix + "p50_us", 1e6 * Quantile(&d.decision, 0.5), "us",
        small ? std::optional(3.0) : std::nullopt);
    Add(prefix + "p99_us", 1e6 * Quantile(&d.decision, 0.99), "us", small ? 10 : 20);
    Add(prefix + "p99.9_us", 1e6 * Quantile(&d.decision, 0.999), "us");
    Add(prefix + "decisions_per_s", decisions_per_s, "1/s",
        small ? std::optional(250e3) : std::nullopt);
    Add(prefix + "match_p50_us", 1e6 * Quantile(&d.match, 0.5), "us");
    Add(prefix + "match_p99_us", 1e6 * Quantile(&d.match, 0.99), "us");
    Add(prefix + "events_meanwhile", rate, "blocks/s");
  }

  void RunColdStart() {
    Add("cold_start/blocks=10M/s", TimeColdStart(10000000, true), "s", 3);
    Add("cold_start/unannounced/blocks=10M/s", TimeColdStart(10000000, false), "s");
  }

  const BenchResults& results() const { return results_; }

 private:
  BenchResults results_;
};

int Main(const std::string& command) {
  Bench bench(command);
  bench.RunColdStart();
  for (const std::string& millions : absl::GetFlag(FLAGS_millions)) bench.Run(std::stoi(millions));
  const std::string out = absl::GetFlag(FLAGS_out);
  return out.empty() || WriteFile(out, ToJson(bench.results())) ? 0 : 1;
}

}  // namespace
}  // namespace bough::router

int main(int argc, char** argv) {
  const std::string command = bough::CommandLine(argc, argv);
  absl::ParseCommandLine(argc, argv);
  return bough::router::Main(command);
}
