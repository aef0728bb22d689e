// What the router adds: bough-router, a process of its own, between a client and groups without a model
// that answer with one token at once; all over loopback gRPC on this machine.
//
//   bench-router-e2e --out=bench/results/cpu/router_e2e.json
//
// "added" is the time of a request through the router less the median time of the same prompt sent to a
// group directly over the link, at the same rate. Client, groups and router share the machine's cores, so
// `router_cpu_us`, the processor time of the router's process per request (its idle work included), is the
// figure that other load on the machine does not disturb.
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "bench/results.h"
#include "bench/router_e2e_group.h"
#include "bench/router_e2e_load.h"
#include "common/check.h"

ABSL_FLAG(std::string, router, "", "bough-router; empty: beside this program");
ABSL_FLAG(std::string, model, "models/demo", "folder of the router's tokenizer");
ABSL_FLAG(std::vector<std::string>, router_flags, {}, "more flags for it, with their dashes");
ABSL_FLAG(int, groups, 4, "worker groups");
ABSL_FLAG(int, prompt_tokens, 1024, "ids of a prompt, half of them common to all");
ABSL_FLAG(std::vector<std::string>, rates, std::vector<std::string>({"1000", "5000"}),
          "offered requests/s, one case each");
ABSL_FLAG(int, in_flight, 64, "requests in flight when the rate is what the system can do");
ABSL_FLAG(double, seconds, 8, "of each case, after a warm-up of 2 s");
ABSL_FLAG(bool, stream, true, "also by GenerateStream");
ABSL_FLAG(std::string, out, "", "path of the JSON file; empty: print only");
ABSL_FLAG(std::string, git, "", "commit, where the working directory is no checkout");
// Of the process that plays the groups: started by the bench itself.
ABSL_FLAG(bool, play_groups, false, "be the groups: print their ports, then serve");

namespace bough {
namespace {

// A program that ends with this process. Its stdout can be read, its stderr goes to a file without a name.
class Child {
 public:
  explicit Child(const std::vector<std::string>& argv) {
    int pipe_fds[2];
    CHECK_EQ(pipe(pipe_fds), 0);
    pid_ = fork();
    CHECK(pid_ >= 0);
    if (pid_ == 0) Exec(argv, pipe_fds[1]);
    close(pipe_fds[1]);
    out_ = fdopen(pipe_fds[0], "r");
  }
  ~Child() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    fclose(out_);
  }
  std::string ReadLine() {
    char line[4096] = {};
    CHECK(fgets(line, sizeof(line), out_) != nullptr) << "a child process ended";
    return line;
  }
  double CpuSeconds() const {
    clockid_t clock;
    timespec t;
    CHECK_EQ(clock_getcpuclockid(pid_, &clock), 0);
    CHECK_EQ(clock_gettime(clock, &t), 0);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }

 private:
  [[noreturn]] static void Exec(const std::vector<std::string>& argv, int out) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    // A real file: what the router's log costs is part of it.
    FILE* log = tmpfile();
    dup2(out, STDOUT_FILENO);
    if (log != nullptr) dup2(fileno(log), STDERR_FILENO);
    std::vector<char*> args;
    for (const std::string& arg : argv) args.push_back(const_cast<char*>(arg.c_str()));
    args.push_back(nullptr);
    execv(args[0], args.data());
    _exit(127);
  }

  pid_t pid_;
  FILE* out_;
};

int FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  CHECK_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  CHECK_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
  close(fd);
  return ntohs(address.sin_port);
}

std::vector<std::string> RouterCommand(const std::vector<std::string>& group_ports, int port) {
  std::string binary = absl::GetFlag(FLAGS_router);
  if (binary.empty()) {
    binary = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "bough-router";
  }
  std::vector<std::string> groups;
  for (const std::string& group_port : group_ports) {
    groups.push_back(absl::StrCat("g", groups.size(), "=127.0.0.1:", group_port));
  }
  std::vector<std::string> argv = {binary, absl::StrCat("--listen=127.0.0.1:", port),
                                   "--admin-listen=127.0.0.1:0", "--metrics-listen=",
                                   // A rate that is too high shows in the times, not in refusals.
                                   "--max-requests-in-flight=1000000",
                                   absl::StrCat("--model=", absl::GetFlag(FLAGS_model)),
                                   absl::StrCat("--groups=", absl::StrJoin(groups, ","))};
  for (const std::string& flag : absl::GetFlag(FLAGS_router_flags)) {
    if (!flag.empty()) argv.push_back(flag);
  }
  return argv;
}

class Bench {
 public:
  Bench(BenchResults* results)
      : results_(*results),
        groups_({std::filesystem::read_symlink("/proc/self/exe"), "--play_groups",
                 absl::StrCat("--groups=", absl::GetFlag(FLAGS_groups))}),
        group_ports_(absl::StrSplit(groups_.ReadLine(), ' ', absl::SkipWhitespace())),
        port_(FreePort()),
        router_(RouterCommand(group_ports_, port_)) {
    AwaitServing(port_);
  }

  void AtRate(double rate, bool stream) {
    E2eLoad load = Load();
    load.rate = rate;
    int group_port = 0;
    CHECK(absl::SimpleAtoi(group_ports_[0], &group_port));
    const E2eResult direct = LoadGroup(group_port, load);
    const Measured m = ThroughRouter(stream, load);
    const std::string name = absl::StrCat(stream ? "stream/" : "", "rate=", rate, "/");
    if (!Check(name, m.result) || !Check(name, direct)) return;
    const double base = Percentile(direct, 50);
    for (const auto& [percent, gate] : {std::pair(50, 200.0), std::pair(99, 2000.0)}) {
      BenchCase c{.name = absl::StrCat(name, "p", percent, "_us"),
                  .value = 1e6 * (Percentile(m.result, percent) - base),
                  .unit = "us added",
                  .peer = absl::StrCat("p", percent, " of client to group, without the router"),
                  .peer_value = 1e6 * Percentile(direct, percent)};
      if (rate == 5000) c.gate = gate;
      Add(c);
    }
    Add({.name = name + "requests_per_s", .value = m.result.requests_per_s, .unit = "1/s"});
    Add({.name = name + "router_cpu_us", .value = m.cpu_us, .unit = "us per request"});
  }

  void AtMost(bool stream) {
    E2eLoad load = Load();
    load.in_flight = absl::GetFlag(FLAGS_in_flight);
    const Measured m = ThroughRouter(stream, load);
    const std::string name = absl::StrCat(stream ? "stream/" : "", "max/");
    if (!Check(name, m.result)) return;
    Add({.name = name + "requests_per_s", .value = m.result.requests_per_s, .unit = "1/s"});
    Add({.name = name + "p50_us", .value = 1e6 * Percentile(m.result, 50), .unit = "us"});
    Add({.name = name + "router_cpu_us", .value = m.cpu_us, .unit = "us per request"});
  }

 private:
  struct Measured {
    E2eResult result;
    double cpu_us = 0;  // per request
  };

  static E2eLoad Load() {
    return {.warm_up_seconds = 2,
            .seconds = absl::GetFlag(FLAGS_seconds),
            .prompt_tokens = absl::GetFlag(FLAGS_prompt_tokens)};
  }

  Measured ThroughRouter(bool stream, const E2eLoad& load) {
    const double before = router_.CpuSeconds();
    Measured out{LoadRouter(port_, stream, load)};
    const double cpu = router_.CpuSeconds() - before;
    const double all = out.result.requests_per_s * (load.seconds + load.warm_up_seconds);
    out.cpu_us = 1e6 * cpu / all;
    return out;
  }

  // False: there is nothing to report but what went wrong.
  bool Check(const std::string& name, const E2eResult& result) {
    if (result.num_failed == 0 && !result.seconds.empty()) return true;
    results_.skipped[name] = absl::StrCat(result.num_failed, " failed: ", result.first_error);
    std::printf("%-32s %s\n", name.c_str(), results_.skipped[name].c_str());
    return false;
  }

  void Add(BenchCase c) {
    std::printf("%-32s %10.1f %s", c.name.c_str(), c.value, c.unit.c_str());
    if (!c.peer.empty()) std::printf("   (%s: %.1f)", c.peer.c_str(), c.peer_value);
    std::printf("\n");
    std::fflush(stdout);
    results_.cases.push_back(std::move(c));
  }

  BenchResults& results_;
  Child groups_;
  const std::vector<std::string> group_ports_;
  const int port_;
  Child router_;
};

int Main(std::string command) {
  if (absl::GetFlag(FLAGS_play_groups)) {
    E2eGroups groups(absl::GetFlag(FLAGS_groups));
    std::printf("%s\n", absl::StrJoin(groups.ports(), " ").c_str());
    std::fflush(stdout);
    groups.Wait();
    return 0;
  }
  BenchResults results;
  results.scenario = "router_e2e";
  results.device = absl::StrCat(CpuName(), ", ", sysconf(_SC_NPROCESSORS_ONLN), " cores");
  results.command = std::move(command);
  results.git = absl::GetFlag(FLAGS_git);
  {
    Bench bench(&results);
    for (const bool stream : {false, true}) {
      if (stream && !absl::GetFlag(FLAGS_stream)) continue;
      for (const std::string& text : absl::GetFlag(FLAGS_rates)) {
        double rate = 0;
        if (text.empty()) continue;
        CHECK(absl::SimpleAtod(text, &rate) && rate > 0) << "--rates: " << text;
        bench.AtRate(rate, stream);
      }
      bench.AtMost(stream);
    }
  }
  const std::string out = absl::GetFlag(FLAGS_out);
  return out.empty() || WriteFile(out, ToJson(results)) ? 0 : 1;
}

}  // namespace
}  // namespace bough

int main(int argc, char** argv) {
  std::string command = bough::CommandLine(argc, argv);
  absl::ParseCommandLine(argc, argv);
  return bough::Main(std::move(command));
}
