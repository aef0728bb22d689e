// link.proto <-> group_messages.h, each way in one function.
#pragma once

#include "absl/status/statusor.h"
#include "bough/group/v1/link.pb.h"
#include "router/group_messages.h"

namespace bough::router {

group::v1::LinkRequest ToProto(const GroupCommand& command);

// INVALID_ARGUMENT when a group sends what this build does not understand.
absl::StatusOr<GroupEvent> FromProto(const group::v1::LinkResponse& response);

}  // namespace bough::router
