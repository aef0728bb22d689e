#include "worker/engine_loop.h"

#include <optional>

#include "common/log.h"
#include "worker/clock.h"

namespace bough {
namespace {

// Bounds how late a stop request is seen by an idle engine.
constexpr absl::Duration kIdleWait = absl::Milliseconds(100);

void StepOnce(Engine* engine, GroupServer* server, EngineMetrics* metrics) {
  server->BeforeStep();
  const std::optional<StepEvents> events = engine->Step(MonotonicNow());
  if (!events) return;
  server->Publish(*events);
  server->PublishLoadIfDue();
  const std::vector<FinishedRequest> finished = FinishedRequests(*events);
  metrics->Observe(*events, finished);
  for (const FinishedRequest& request : finished) LogFinished(request);
}

}  // namespace

void RunEngine(Engine* engine, GroupServer* server, EngineMetrics* metrics, const StopRequest& stop,
               absl::Duration drain_timeout) {
  std::optional<absl::Time> drain_end;
  while (!stop.at_once()) {
    if (engine->WaitForWork(kIdleWait)) StepOnce(engine, server, metrics);
    if (!stop.drain()) continue;
    if (!drain_end) {
      drain_end = MonotonicNow() + drain_timeout;
      LogInfo("draining", {{"seconds_at_most", absl::ToDoubleSeconds(drain_timeout)},
                           {"routers", server->num_routers()}});
    }
    const LoadReport load = engine->Load();
    if (load.running + load.waiting == 0) return;
    if (MonotonicNow() >= *drain_end) {
      LogWarning("drain timeout", {{"running", load.running}, {"waiting", load.waiting}});
      return;
    }
  }
}

}  // namespace bough
