// bough-router: see config.h for its flags and README.md for its contracts.

#include <csignal>
#include <cstdio>
#include <ctime>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/status_macros.h"
#include "common/tokenizer.h"
#include "router/clock.h"
#include "router/config.h"
#include "router/router.h"
#include "router/router_metrics.h"
#include "router/server.h"

namespace bough::router {
namespace {

// Answers that are complete but not yet written get this long after the last request ended.
constexpr absl::Duration kFlushGrace = absl::Seconds(5);

// SIGINT and SIGTERM, blocked in every thread and waited for here.
sigset_t BlockSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

// True when a signal came within `timeout`.
bool SignalCame(const sigset_t& signals, absl::Duration timeout) {
  const timespec wait = absl::ToTimespec(timeout);
  return sigtimedwait(&signals, nullptr, &wait) > 0;
}

// After the first signal: no new requests, open streams go on for up to drain_timeout. A second
// signal ends them at once.
void Drain(Router& router, Server& server, const sigset_t& signals) {
  router.SetDraining(true);
  LogInfo("draining", {{"timeout_seconds", absl::ToDoubleSeconds(router.config().drain_timeout)}});
  const absl::Time end = MonotonicNow() + router.config().drain_timeout;
  bool idle = router.WaitUntilIdle(absl::ZeroDuration());
  while (!idle && MonotonicNow() < end) {
    if (SignalCame(signals, absl::Milliseconds(10))) break;
    idle = router.WaitUntilIdle(absl::Milliseconds(40));
  }
  server.Shutdown(idle ? kFlushGrace : absl::ZeroDuration());
  LogInfo("stopped", {{"idle", idle}});
}

absl::Status Run(int argc, char** argv) {
  const sigset_t signals = BlockSignals();
  // Debian's abseil looks for lock cycles at every lock. Tests do so; here it costs a few percent.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  ASSIGN_OR_RETURN(const RouterConfig config,
                   ParseFlags(std::vector<std::string>(argv + 1, argv + argc)));
  if (config.help) {
    std::fputs(FlagsHelp().c_str(), stdout);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(config.Validate());
  InitLog(config.log_level, {{"role", "router"}});
  ASSIGN_OR_RETURN(auto tokenizer, Tokenizer::Load(config.model + "/tokenizer.model"));
  Metrics metrics;
  RouterMetrics router_metrics(&metrics, config.groups, config.tenant_weights);
  if (!config.metrics_listen.empty())
    RETURN_IF_ERROR(metrics.Serve(config.metrics_listen).status());
  Router router(config, tokenizer.get(), &router_metrics);
  ASSIGN_OR_RETURN(auto server, Server::Start(&router));
  LogInfo("listening", {{"port", server->public_port()},
                        {"admin_port", server->admin_port()},
                        {"model", config.served_model_name},
                        {"groups", config.groups.size()}});
  while (!SignalCame(signals, absl::Hours(1))) {
  }
  Drain(router, *server, signals);
  return absl::OkStatus();
}

}  // namespace
}  // namespace bough::router

int main(int argc, char** argv) {
  const absl::Status status = bough::router::Run(argc, argv);
  if (status.ok()) return 0;
  std::fprintf(stderr, "bough-router: %s\n", std::string(status.message()).c_str());
  return 1;
}
