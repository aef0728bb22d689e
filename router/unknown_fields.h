// Fields that a client sent and this build does not know. They are refused, never ignored.
#pragma once

#include <vector>

#include "common/sampling_params.h"
#include "google/protobuf/message.h"

namespace bough::router {

// One violation per message that has unknown fields; names its path and the field numbers.
std::vector<FieldViolation> FindUnknownFields(const google::protobuf::Message& message);

}  // namespace bough::router
