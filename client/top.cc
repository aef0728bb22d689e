// bough top: a live view of the router's groups.
#include <atomic>
#include <thread>

#include "bough/v1/admin.grpc.pb.h"
#include "client/commands.h"
#include "client/connection.h"
#include "client/progress.h"
#include "client/terminal.h"
#include "client/top_frame.h"

namespace bough::client {
namespace {

using Clock = std::chrono::steady_clock;

double MonotonicSeconds() {
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

class Watcher {
 public:
  explicit Watcher(const Connection& connection)
      : connection_(connection), stub_(v1::AdminService::NewStub(connection.AdminChannel())) {}

  grpc::Status Look(Snapshot* snapshot) {
    *snapshot = Snapshot();
    grpc::ClientContext info, groups, progress;
    connection_.PrepareAdmin(info);
    connection_.PrepareAdmin(groups);
    connection_.PrepareAdmin(progress);
    grpc::Status status = stub_->GetServerInfo(&info, v1::GetServerInfoRequest(), &snapshot->info);
    if (status.ok()) {
      status = stub_->ListGroups(&groups, v1::ListGroupsRequest(), &snapshot->groups);
    }
    snapshot->seconds = MonotonicSeconds();
    if (status.ok()) {
      status = stub_->GetLoadProgress(&progress, v1::GetLoadProgressRequest(), &snapshot->progress);
    }
    return status;
  }

 private:
  const Connection& connection_;
  const std::unique_ptr<v1::AdminService::Stub> stub_;
};

// Sleeps, in slices that notice an interrupt.
void Pause(absl::Duration duration, const Interrupt& interrupt) {
  const auto end = Clock::now() + absl::ToChronoNanoseconds(duration);
  while (Clock::now() < end && !interrupt.raised()) {
    std::this_thread::sleep_for(
        std::min<Clock::duration>(end - Clock::now(), std::chrono::milliseconds(50)));
  }
}

int ShowOnce(Watcher& watcher, absl::Duration interval, Io& io) {
  Snapshot before, now;
  grpc::Status status = watcher.Look(&before);
  if (status.ok()) {
    Pause(interval, io.interrupt);  // rates need two looks
    status = watcher.Look(&now);
  }
  if (!status.ok()) {
    io.err << "error: " << DescribeError(status) << "\n";
    return kExitError;
  }
  io.out << TopFrame(now, before, {io.out_tty, SizeOf(1).columns});
  return kExitOk;
}

// Load progress until every group is ready: the bars on a terminal, a summary line elsewhere.
int AwaitReady(Watcher& watcher, const Connection& connection, Io& io) {
  const double start = MonotonicSeconds();
  ProgressPrinter printer(io.err, io.err_tty, SizeOf(2).columns);
  while (!io.interrupt.raised()) {
    Snapshot now;
    const grpc::Status status = watcher.Look(&now);
    const double waited = MonotonicSeconds() - start;
    const std::string line =
        status.ok() ? ReadyLine(now) : "waiting for the router: " + DescribeError(status);
    if (status.ok() && AllReady(now.groups)) {
      printer.Finish(line);
      return kExitOk;
    }
    if (absl::Seconds(waited) > connection.timeout) {
      printer.Finish(line);
      io.err << "error: not ready within --timeout\n";
      return kExitError;
    }
    printer.Show(waited, line);
    Pause(absl::Milliseconds(100), io.interrupt);
  }
  return kExitInterrupt;
}

int ShowLive(Watcher& watcher, absl::Duration interval, Io& io) {
  FullScreen screen;
  std::optional<Snapshot> before;
  while (!io.interrupt.raised()) {
    Snapshot now;
    const grpc::Status status = watcher.Look(&now);
    if (status.ok()) {
      screen.Draw(TopFrame(now, before, {true, SizeOf(1).columns}) + "\nq quits\n");
      before = now;
    } else {
      screen.Draw("bough top: " + DescribeError(status) + "\n\nstill trying; q quits\n");
      before.reset();
    }
    const auto next = Clock::now() + absl::ToChronoNanoseconds(interval);
    while (Clock::now() < next && !io.interrupt.raised()) {
      if (screen.ReadKey(/*timeout_ms=*/50) == 'q') return kExitOk;
    }
  }
  return kExitOk;
}

}  // namespace

int RunTop(const Args& args, Io& io) {
  Connection connection;
  absl::Duration interval = absl::Seconds(1);
  bool once = false, until_ready = false;
  FlagSet flags("bough top", "", "Live view of groups, queues, caches and load progress; q quits.");
  flags.Add("interval", "DURATION", "between two looks", &interval);
  flags.Add("once", "", "print one frame (two looks, one interval apart) and end", &once);
  flags.Add("until-ready", "", "show load progress, end when every group is ready", &until_ready);
  connection.AddFlags(flags);
  if (FlagSet::WantsHelp(args)) {
    io.out << flags.Help();
    return kExitOk;
  }
  const auto positional = flags.Parse(args);
  if (!positional.ok()) return UsageError(positional.status(), io);
  if (!positional->empty()) {
    return UsageError(
        absl::InvalidArgumentError("bough top takes no argument: '" + positional->front() + "'"),
        io);
  }
  if (interval < absl::Milliseconds(10) || interval > absl::Hours(1)) {
    return UsageError(absl::InvalidArgumentError("--interval must be in [10ms, 1h], is " +
                                                 absl::FormatDuration(interval)),
                      io);
  }
  Watcher watcher(connection);
  InterruptScope on_interrupt(io.interrupt, [] {});  // the loops look at raised()
  if (until_ready) return AwaitReady(watcher, connection, io);
  if (once) return ShowOnce(watcher, interval, io);
  if (!io.in_tty || !io.out_tty) {
    return UsageError(absl::InvalidArgumentError("bough top needs a terminal; --once does not"),
                      io);
  }
  return ShowLive(watcher, interval, io);
}

}  // namespace bough::client
