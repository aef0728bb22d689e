// The errors that the router itself gives, one function each; the table is README.md's.
#pragma once

#include <string>

#include "absl/time/time.h"
#include "common/grpc_status.h"
#include "router/group_messages.h"

namespace bough::router {

ApiError TooManyInFlight(int limit, absl::Duration retry_after);
// No group is predicted to begin the answer in time.
ApiError Overloaded(absl::Duration retry_after);
ApiError DuplicateRequest(const std::string& request_id);
ApiError RouterDraining();
ApiError ModelLoading();
ApiError NoGroup(const std::string& why);
ApiError UnknownModel(const std::string& name, const std::string& served);
// stage: queue, prefill or decode.
ApiError DeadlineExceeded(const std::string& stage);
ApiError SlowConsumer(int64_t limit_bytes);
ApiError ClientGone();
ApiError CancelledByOperator();
// Its group died and no attempt is left. Before the first token the client may safely retry
// (UNAVAILABLE), after it part of an answer is out (ABORTED).
ApiError GroupLost(const std::string& why, bool any_token);
// What a group's Done means to the client. REQUIRES: done.code is not OK.
ApiError FromDone(const Done& done, absl::Duration retry_after);

}  // namespace bough::router
