// The core's events as bough.v1 messages, each kind in one function.
#pragma once

#include <cstdint>
#include <vector>

#include "bough/v1/admin.pb.h"
#include "bough/v1/generation.pb.h"
#include "bough/v1/model.pb.h"
#include "router/client_events.h"
#include "router/dispatcher.h"
#include "router/request.h"

namespace bough::router {

v1::StreamStart ToProto(const StartEvent& event, const Request& request, const std::string& model);
v1::StreamDelta ToProto(const DeltaEvent& event);
v1::StreamFinish ToProto(const FinishEvent& event, const Request& request);
v1::Usage ToUsage(const RequestSummary& summary);
v1::Timings ToTimings(const RequestSummary& summary);
void AddRoute(const std::vector<RouteTerm>& route,
              google::protobuf::RepeatedPtrField<v1::RouteCandidate>* out);

// `now` is the router's monotonic time.
v1::Group ToProto(const GroupState& group, int cached_blocks, absl::Time now);
v1::Model ToModel(const GroupHello& hello, const RouterConfig& config, int ready_groups);

}  // namespace bough::router
