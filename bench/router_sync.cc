// A router replica that starts cold: how long until its index holds what the groups hold, and what
// it answers meanwhile. Both ends in this process over loopback gRPC: GroupServer (without a model),
// GroupLink, GroupTable with its index; only the dispatcher is left out.
//
//   bench-router-sync --blocks=10000000 --groups=8 --out=bench/results/cpu/router_sync.json
//
// Groups go on storing and evicting all the time. "decision" is a placement's matching of 256 blocks
// under the router's lock, while the index fills.

#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/results.h"
#include "common/check.h"
#include "common/log.h"
#include "router/clock.h"
#include "router/group_link.h"
#include "router/group_table.h"
#include "worker/server.h"

ABSL_FLAG(int64_t, blocks, 10'000'000, "Cached blocks of all groups together; all differ.");
ABSL_FLAG(int, groups, 8, "Groups, each a server of its own.");
ABSL_FLAG(int, churn, 1000, "Blocks that each group stores, and evicts, per second.");
ABSL_FLAG(std::string, git, "", "Commit that is measured. Empty: asked of git.");
ABSL_FLAG(std::string, out, "", "Results file. Empty: none.");

namespace bough {
namespace {

using router::MonotonicNow;

class NoModel : public StepExecutor {
 public:
  void Launch(const Batch&) override { CHECK(false) << "nothing is submitted here"; }
  StepResult Wait() override { return {}; }
  int max_steps_in_flight() const override { return 1; }
};

// A group that serves, with a full cache that changes at a steady rate: the oldest blocks go.
class Group {
 public:
  Group(int number, int64_t num_blocks)
      : random_(number + 1),
        engine_(Config(), &model_),
        server_(Hello(number, num_blocks), MonotonicNow) {
    const auto port = server_.Start("127.0.0.1:0");
    CHECK(port.ok()) << port.status().message();
    address = absl::StrCat("127.0.0.1:", *port);
    blocks_.reserve(num_blocks);
    while (static_cast<int64_t>(blocks_.size()) < num_blocks) {
      Change(std::min<int64_t>(65536, num_blocks - blocks_.size()), 0);
    }
    server_.Serve(Hello(number, num_blocks), &engine_);
    load_reports_ = std::thread([this] {
      while (server_.WaitForLoadDue()) server_.PublishLoadIfDue();
    });
  }
  ~Group() {
    stopping_ = true;
    if (churn_.joinable()) churn_.join();
    server_.Shutdown(absl::ZeroDuration());
    load_reports_.join();
  }

  void StartChurn(int per_second) {
    churn_ = std::thread([this, per_second] {
      for (; !stopping_; absl::SleepFor(absl::Milliseconds(10))) {
        Change(per_second / 100, per_second / 100);
      }
    });
  }
  // The chain's blocks are the group's own; ends the churn.
  uint64_t StopAndDigest() {
    stopping_ = true;
    churn_.join();
    uint64_t digest = 0;
    for (const BlockHash& hash : blocks_) digest += DigestTerm(hash);
    return digest;
  }
  std::vector<BlockHash> SomeBlocks(int n) const { return {blocks_.end() - n, blocks_.end()}; }

  std::string address;

 private:
  static EngineConfig Config() {
    EngineConfig config;
    config.num_blocks = 1;
    config.clock = MonotonicNow;
    return config;
  }
  static group::v1::Hello Hello(int number, int64_t num_blocks) {
    group::v1::Hello hello;
    hello.set_group(absl::StrCat("g", number));
    hello.set_epoch(100 + number);
    hello.set_block_size(kBlockSize);
    hello.set_model_key("bench");
    hello.set_total_blocks(static_cast<int>(num_blocks));
    return hello;
  }
  void Change(int64_t num_stored, int64_t num_removed) {
    StepEvents events;
    for (int64_t i = 0; i < num_removed; ++i) {
      BlockHash& oldest = blocks_[next_++ % (blocks_.size() / 2)];
      events.cache.removed.push_back(oldest);
      events.cache.stored.push_back({random_(), random_()});
      oldest = events.cache.stored.back();
    }
    for (int64_t i = num_removed; i < num_stored; ++i) {
      blocks_.push_back({random_(), random_()});
      events.cache.stored.push_back(blocks_.back());
    }
    server_.Publish(events);
  }

  std::mt19937_64 random_;
  NoModel model_;
  Engine engine_;
  GroupServer server_;
  std::vector<BlockHash> blocks_;
  size_t next_ = 0;
  std::atomic<bool> stopping_{false};
  std::thread churn_, load_reports_;
};

// What router::Router does around the core, without requests.
class Replica {
 public:
  explicit Replica(const std::vector<router::GroupAddress>& addresses) : table_(addresses) {
    for (int g = 0; g < static_cast<int>(addresses.size()); ++g) {
      router::LinkCallbacks callbacks;
      callbacks.event = [this, g](uint64_t connection, router::GroupEvent event, absl::Time now) {
        const std::lock_guard lock(mutex_);
        if (!links_[g]->IsCurrent(connection)) return;
        OnEvent(g, event, now);
        for (const auto& [to, command] : table_.TakeCommands()) links_[to]->Send(command);
      };
      callbacks.down = [](uint64_t, const std::string&, absl::Time) {};
      links_.push_back(
          std::make_unique<router::GroupLink>(addresses[g].address, "bench", std::move(callbacks)));
    }
  }

  void Connect() {
    for (auto& link : links_) link->Tick(MonotonicNow());
  }
  // The streams break, and are opened again at once.
  void Reconnect() {
    const std::lock_guard lock(mutex_);
    for (int g = 0; g < table_.size(); ++g) {
      links_[g]->Reset();
      table_.OnDown(g, "reset", MonotonicNow());
      links_[g]->Tick(MonotonicNow());
    }
  }
  int num_in_sync() {
    const std::lock_guard lock(mutex_);
    int n = 0;
    for (int g = 0; g < table_.size(); ++g) n += table_.cache(g).in_sync();
    return n;
  }
  int num_accepting() {
    const std::lock_guard lock(mutex_);
    return table_.num_accepting();
  }
  void Match(const std::vector<BlockHash>& chain) {
    const std::lock_guard lock(mutex_);
    const auto views = table_.Views(chain, 0);
    CHECK_EQ(static_cast<int>(views.size()), table_.size());
  }
  template <typename Read>
  auto Inspect(Read read) {
    const std::lock_guard lock(mutex_);
    return read(table_);
  }

 private:
  void OnEvent(int g, router::GroupEvent& event, absl::Time now) {
    if (auto* hello = std::get_if<router::GroupHello>(&event)) {
      CHECK(table_.OnHello(g, std::move(*hello), now));
    } else if (auto* reply = std::get_if<router::CacheSyncReply>(&event)) {
      table_.OnCache(g, *reply, now);
    } else if (auto* delta = std::get_if<router::CacheDelta>(&event)) {
      table_.OnCache(g, *delta, now);
    } else if (auto* digests = std::get_if<router::BucketDigests>(&event)) {
      table_.OnCache(g, *digests, now);
    } else if (auto* contents = std::get_if<router::BucketContents>(&event)) {
      table_.OnCache(g, *contents, now);
    } else if (auto* load = std::get_if<router::GroupLoad>(&event)) {
      table_.OnLoad(g, *load, now);
    }
  }

  std::mutex mutex_;
  router::GroupTable table_;
  std::vector<std::unique_ptr<router::GroupLink>> links_;
};

double ProcessCpuSeconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double Percentile(std::vector<double> values, double p) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[std::min<size_t>(values.size() - 1, p * values.size())];
}

// Sorted, the first half of each hash as its distance from the one before (7 bits a byte), the
// second as it is: what could be saved on the wire, and what it would cost.
size_t SortAndDeltaCode(std::vector<BlockHash> hashes, std::string* out) {
  std::sort(hashes.begin(), hashes.end(), [](const BlockHash& a, const BlockHash& b) {
    return a.hi != b.hi ? a.hi < b.hi : a.lo < b.lo;
  });
  uint64_t last = 0;
  for (const BlockHash& hash : hashes) {
    uint64_t distance = hash.hi - last;
    for (; distance >= 0x80; distance >>= 7) out->push_back(static_cast<char>(distance | 0x80));
    out->push_back(static_cast<char>(distance));
    out->append(reinterpret_cast<const char*>(&hash.lo), sizeof(hash.lo));
    last = hash.hi;
  }
  return out->size();
}

void MeasureEncodings(int64_t num_blocks, BenchResults* results) {
  std::mt19937_64 random(1);
  std::vector<BlockHash> hashes(num_blocks);
  for (BlockHash& hash : hashes) hash = {random(), random()};
  std::string raw, coded;
  absl::Time start = MonotonicNow();
  for (const BlockHash& hash : hashes) AppendHash(hash, &raw);
  const double raw_s = absl::ToDoubleSeconds(MonotonicNow() - start);
  start = MonotonicNow();
  SortAndDeltaCode(hashes, &coded);
  const double coded_s = absl::ToDoubleSeconds(MonotonicNow() - start);
  const double n = static_cast<double>(num_blocks);
  results->cases.push_back({"encoding=raw/bytes_per_block", raw.size() / n, "B"});
  results->cases.push_back({"encoding=sorted_delta/bytes_per_block", coded.size() / n, "B"});
  results->cases.push_back({"encoding=raw/ns_per_block", raw_s * 1e9 / n, "ns"});
  results->cases.push_back({"encoding=sorted_delta/ns_per_block", coded_s * 1e9 / n, "ns"});
}

struct SyncTimes {
  double first_accepting_s = 0, all_accepting_s = 0, in_sync_s = 0;
  std::vector<double> decisions_us;
};

SyncTimes WaitForSync(Replica* replica, int num_groups, const std::vector<BlockHash>& chain,
                      absl::Time start) {
  SyncTimes times;
  const auto since_start = [start] { return absl::ToDoubleSeconds(MonotonicNow() - start); };
  while (replica->num_in_sync() < num_groups) {
    const int accepting = replica->num_accepting();
    if (accepting > 0 && times.first_accepting_s == 0) times.first_accepting_s = since_start();
    if (accepting == num_groups && times.all_accepting_s == 0) {
      times.all_accepting_s = since_start();
    }
    const absl::Time before = MonotonicNow();
    replica->Match(chain);
    times.decisions_us.push_back(absl::ToDoubleMicroseconds(MonotonicNow() - before));
    absl::SleepFor(absl::Milliseconds(1));
    CHECK(since_start() < 120) << "not in sync after two minutes";
  }
  times.in_sync_s = since_start();
  return times;
}

int Run(int argc, char** argv) {
  InitLog("warning", {{"role", "bench"}});
  const int num_groups = absl::GetFlag(FLAGS_groups);
  const int64_t num_blocks = absl::GetFlag(FLAGS_blocks);
  std::vector<std::unique_ptr<Group>> groups;
  std::vector<router::GroupAddress> addresses;
  for (int g = 0; g < num_groups; ++g) {
    groups.push_back(std::make_unique<Group>(g, num_blocks / num_groups));
    addresses.push_back({absl::StrCat("g", g), groups.back()->address});
  }
  const std::vector<BlockHash> chain = groups[0]->SomeBlocks(256);
  for (auto& group : groups) group->StartChurn(absl::GetFlag(FLAGS_churn));
  std::fprintf(stderr, "%d groups hold %lld blocks\n", num_groups,
               static_cast<long long>(num_blocks));

  BenchResults results;
  results.scenario = "router_sync";
  results.device = CpuName();
  results.command = CommandLine(argc, argv);
  results.git = absl::GetFlag(FLAGS_git);
  const auto add = [&](const std::string& what, double value, const std::string& unit) {
    results.cases.push_back(
        {absl::StrCat("blocks=", num_blocks / 1'000'000, "M/groups=", num_groups, "/", what), value,
         unit});
    std::printf("%-40s %12.4g %s\n", what.c_str(), value, unit.c_str());
  };

  const double cpu_before = ProcessCpuSeconds();
  absl::Time start = MonotonicNow();
  Replica replica(addresses);
  replica.Connect();
  const SyncTimes cold = WaitForSync(&replica, num_groups, chain, start);
  add("serving_from_s", cold.first_accepting_s, "s");
  add("all_groups_accept_s", cold.all_accepting_s, "s");
  add("in_sync_s", cold.in_sync_s, "s");
  results.cases.back().gate = 3.0;
  add("in_sync_cpu_s", ProcessCpuSeconds() - cpu_before, "s");  // of both ends
  add("decision_while_filling_p50_us", Percentile(cold.decisions_us, 0.5), "us");
  add("decision_while_filling_p99_us", Percentile(cold.decisions_us, 0.99), "us");
  int64_t bytes = 0;
  for (int g = 0; g < num_groups; ++g) {
    bytes += replica.Inspect([g](const auto& t) { return t.cache(g).stats().bucket_bytes; });
  }
  add("bucket_bytes_per_block", static_cast<double>(bytes) / num_blocks, "B");

  start = MonotonicNow();
  replica.Reconnect();
  add("resumed_s", WaitForSync(&replica, num_groups, chain, start).in_sync_s, "s");

  // All the time blocks came and went; what the replica holds is what the groups hold.
  for (int g = 0; g < num_groups; ++g) {
    const uint64_t digest = groups[g]->StopAndDigest();
    const auto agrees = [&](const router::GroupTable& t) { return t.index().digest(g) == digest; };
    for (int i = 0; i < 1000 && !replica.Inspect(agrees); ++i) {
      absl::SleepFor(absl::Milliseconds(1));
    }
    const auto& stats = replica.Inspect([g](const auto& t) { return t.cache(g).stats(); });
    CHECK(replica.Inspect(agrees))
        << "group " << g << " and its router differ: gaps " << stats.gaps << ", digests "
        << stats.digest_mismatches << ", timeouts " << stats.timeouts << ", refused "
        << replica.Inspect([](const auto& t) { return t.index().num_refused(); }) << ", lag "
        << replica.Inspect([g](const auto& t) { return t.cache(g).lag(); });
    CHECK_EQ(stats.digest_mismatches + stats.gaps, 0) << "group " << g;
    CHECK_EQ(stats.resumes, 1) << "group " << g;
  }
  MeasureEncodings(num_blocks / num_groups, &results);
  const std::string out = absl::GetFlag(FLAGS_out);
  return out.empty() || WriteFile(out, ToJson(results)) ? 0 : 1;
}

}  // namespace
}  // namespace bough

int main(int argc, char** argv) {
  const int num_args = argc;
  char** const args = argv;
  absl::ParseCommandLine(argc, argv);
  return bough::Run(num_args, args);
}
