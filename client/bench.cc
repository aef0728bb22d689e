// bough bench: a synthetic load, its latencies and throughput.
#include <cstdio>
#include <fstream>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "bough/v1/admin.grpc.pb.h"
#include "bough/v1/model.grpc.pb.h"
#include "client/bench_report.h"
#include "client/commands.h"
#include "client/connection.h"
#include "client/progress.h"
#include "client/terminal.h"

namespace bough::client {
namespace {

struct BenchFlags {
  Connection connection;
  WorkloadConfig workload;
  int concurrency = 16;
  bool concurrency_given = false;
  double request_rate = 0;
  std::string out, scenario;
  std::map<std::string, double> ceilings, floors;

  BenchFlags() { connection.timeout = absl::Seconds(120); }
};

FlagSet::Setter NamedNumber(std::map<std::string, double>* numbers) {
  return [numbers](std::string_view text) -> absl::Status {
    const std::pair<std::string, std::string> parts =
        absl::StrSplit(absl::string_view(text.data(), text.size()), absl::MaxSplits('=', 1));
    if (parts.first.empty() || !absl::SimpleAtod(parts.second, &(*numbers)[parts.first])) {
      return absl::InvalidArgumentError("");
    }
    return absl::OkStatus();
  };
}

FlagSet DefineFlags(BenchFlags& f) {
  FlagSet flags(
      "bough bench", "",
      "Sends a synthetic load and reports latencies and throughput. Closed loop by default; "
      "open loop with --request-rate.");
  WorkloadConfig& w = f.workload;
  flags.Add("num-requests", "N", "requests in all", &w.num_requests);
  flags.On<int>("concurrency", "N", "requests in flight (16; open loop: no bound)", [&f](int v) {
    f.concurrency = v;
    f.concurrency_given = true;
  });
  flags.Add("request-rate", "F", "arrivals per second, Poisson; 0 = closed loop", &f.request_rate);
  flags.Add("input-len", "N", "fresh tokens of a prompt", &w.input_len);
  flags.Add("output-len", "N", "tokens per answer, exactly", &w.output_len);
  flags.Add("num-prefixes", "N", "contexts that prompts begin with; 0 = none", &w.num_prefixes);
  flags.Add("prefix-len", "N", "tokens of a context", &w.prefix_len);
  flags.Add("n", "N", "answers per request", &w.n);
  flags.Add("temperature", "F", "0 = greedy", &w.temperature);
  flags.Add("seed", "N", "of prompts, arrivals and sampling", &w.seed);
  flags.Add("out", "FILE", "write the figures as JSON", &f.out);
  flags.Add("scenario", "NAME", "add the project's result format, under this name, to --out",
            &f.scenario);
  flags.AddRaw("ceiling", "NAME=VALUE", "a measured limit of this machine, kept with the result",
               NamedNumber(&f.ceilings));
  flags.AddRaw("floor", "CASE=VALUE", "the physical limit of a case; gives its ratio",
               NamedNumber(&f.floors));
  f.connection.AddFlags(flags);
  return flags;
}

absl::Status ValidateFlags(const BenchFlags& f) {
  if (f.concurrency < 1 || f.concurrency > 100'000) {
    return absl::InvalidArgumentError(
        absl::StrCat("--concurrency must be in [1, 100000], is ", f.concurrency));
  }
  if (!(f.request_rate >= 0 && f.request_rate <= 1e6)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--request-rate must be in [0, 1e6], is ", f.request_rate));
  }
  if (f.connection.timeout == absl::InfiniteDuration()) {
    return absl::InvalidArgumentError("--timeout must be finite: a bench ends by itself");
  }
  if (!f.scenario.empty() && f.out.empty()) {
    return absl::InvalidArgumentError("--scenario needs --out FILE");
  }
  return absl::OkStatus();
}

std::string FirstDevice(const Connection& connection) {
  grpc::ClientContext context;
  connection.PrepareAdmin(context);
  v1::ListGroupsResponse groups;
  const grpc::Status status = v1::AdminService::NewStub(connection.AdminChannel())
                                  ->ListGroups(&context, v1::ListGroupsRequest(), &groups);
  return status.ok() && groups.groups_size() > 0 ? groups.groups(0).device() : "unknown";
}

// The commit of the tree in which the bench runs.
std::string GitRevision() {
  std::unique_ptr<FILE, int (*)(FILE*)> pipe(
      popen("git describe --always --dirty 2>/dev/null", "r"), pclose);
  char line[128] = "";
  if (pipe == nullptr || std::fgets(line, sizeof(line), pipe.get()) == nullptr) return "unknown";
  return std::string(absl::StripTrailingAsciiWhitespace(line));
}

bool WriteJson(const BenchFigures& figures, const BenchFlags& f, const std::string& model, Io& io) {
  BenchContext context;
  context.model = model;
  context.device = FirstDevice(f.connection);
  context.git = GitRevision();
  context.date = absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone());
  context.workload = f.workload;
  context.request_rate = f.request_rate;
  context.concurrency = f.request_rate > 0 && !f.concurrency_given ? 0 : f.concurrency;
  context.scenario = f.scenario;
  context.ceilings = f.ceilings;
  context.floors = f.floors;
  std::ofstream file(f.out);
  file << BenchJson(figures, context).dump(2) << "\n";
  file.close();
  if (!file) io.err << "error: --out: cannot write " << f.out << "\n";
  return static_cast<bool>(file);
}

}  // namespace

int RunBench(const Args& args, Io& io) {
  BenchFlags f;
  const FlagSet flags = DefineFlags(f);
  if (FlagSet::WantsHelp(args)) {
    io.out << flags.Help();
    return kExitOk;
  }
  const auto positional = flags.Parse(args);
  if (!positional.ok()) return UsageError(positional.status(), io);
  if (!positional->empty()) {
    return UsageError(
        absl::InvalidArgumentError("bough bench takes no argument: '" + positional->front() + "'"),
        io);
  }
  if (absl::Status s = ValidateFlags(f); !s.ok()) return UsageError(s, io);

  const std::shared_ptr<grpc::Channel> channel = f.connection.ServerChannel();
  v1::GetModelResponse model;
  grpc::ClientContext context;
  f.connection.PrepareAdmin(context);
  const grpc::Status status =
      v1::ModelService::NewStub(channel)->GetModel(&context, v1::GetModelRequest(), &model);
  if (!status.ok()) {
    io.err << "error: " << DescribeError(status) << "\n";
    return kExitError;
  }
  if (absl::Status s = Validate(f.workload, model.model()); !s.ok()) return UsageError(s, io);

  const auto requests = MakeRequests(f.workload, model.model());
  LoadConfig load;
  load.timeout = f.connection.timeout;
  load.concurrency = f.concurrency;
  if (f.request_rate > 0) {
    load.arrivals = PoissonArrivals(f.request_rate, f.workload.num_requests, f.workload.seed);
    if (!f.concurrency_given) load.concurrency = 0;
  }
  ProgressPrinter progress(io.err, io.err_tty, SizeOf(2).columns);
  LoadProgress last;
  const LoadResult result = RunLoad(
      channel, requests, load,
      [&](const LoadProgress& now) {
        last = now;
        progress.Show(now.seconds, BenchProgressLine(now));
      },
      io.interrupt);
  progress.Finish(BenchProgressLine(last));

  const BenchFigures figures = Summarize(result);
  io.out << BenchTable(figures) << std::flush;
  if (!f.out.empty() && !WriteJson(figures, f, model.model().name(), io)) return kExitError;
  if (last.finished < last.total) return kExitInterrupt;
  return figures.completed > 0 ? kExitOk : kExitError;
}

}  // namespace bough::client
