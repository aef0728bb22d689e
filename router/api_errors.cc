#include "router/api_errors.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace bough::router {
namespace {

ApiError Error(absl::StatusCode code, std::string reason, std::string message) {
  ApiError error;
  error.code = code;
  error.reason = std::move(reason);
  error.message = std::move(message);
  return error;
}

ApiError Retryable(ApiError error, absl::Duration after) {
  error.retry_after = after;
  return error;
}

}  // namespace

ApiError TooManyInFlight(int limit, absl::Duration retry_after) {
  return Retryable(Error(absl::StatusCode::kResourceExhausted, "QUEUE_FULL",
                         absl::StrCat("the router has its limit of ", limit,
                                      " requests in flight (--max-requests-in-flight)")),
                   retry_after);
}

ApiError Overloaded(absl::Duration retry_after) {
  return Retryable(Error(absl::StatusCode::kResourceExhausted, "OVERLOADED",
                         "no group is predicted to begin the answer before the request's deadline, "
                         "or within the router's --max-queue-wait"),
                   std::max(retry_after, absl::Milliseconds(100)));
}

ApiError DuplicateRequest(const std::string& request_id) {
  return Error(absl::StatusCode::kAlreadyExists, "DUPLICATE_REQUEST",
               absl::StrCat("request_id: a request \"", request_id, "\" is in flight"));
}

ApiError RouterDraining() {
  return Retryable(Error(absl::StatusCode::kUnavailable, "DRAINING",
                         "this router is draining and takes no new requests"),
                   absl::Seconds(1));
}

ApiError ModelLoading() {
  return Retryable(Error(absl::StatusCode::kUnavailable, "MODEL_LOADING",
                         "the model is still being loaded; see AdminService.GetLoadProgress"),
                   absl::Seconds(2));
}

ApiError NoGroup(const std::string& why) {
  return Retryable(Error(absl::StatusCode::kUnavailable, "NO_GROUP", why), absl::Seconds(1));
}

ApiError UnknownModel(const std::string& name, const std::string& served) {
  ApiError error =
      Error(absl::StatusCode::kNotFound, "MODEL_NOT_FOUND",
            absl::StrCat("model: \"", name, "\" is not served here, \"", served, "\" is"));
  error.resource_type = "bough.v1.Model";
  error.resource_name = name;
  return error;
}

ApiError DeadlineExceeded(const std::string& stage) {
  ApiError error = Error(absl::StatusCode::kDeadlineExceeded, "DEADLINE",
                         absl::StrCat("the deadline passed in stage ", stage));
  error.metadata["stage"] = stage;
  return error;
}

ApiError SlowConsumer(int64_t limit_bytes) {
  return Error(absl::StatusCode::kResourceExhausted, "SLOW_CONSUMER",
               absl::StrCat("the client left more than ", limit_bytes,
                            " bytes of its answer unread (--max-pending-bytes)"));
}

ApiError ClientGone() {
  return Error(absl::StatusCode::kCancelled, "CANCELLED", "the client cancelled or vanished");
}

ApiError CancelledByOperator() {
  return Error(absl::StatusCode::kCancelled, "CANCELLED_BY_OPERATOR",
               "an operator ended the request (AdminService.CancelRequest)");
}

ApiError GroupLost(const std::string& why, bool any_token) {
  const std::string message = absl::StrCat("the group was lost and no attempt is left: ", why);
  if (any_token) return Error(absl::StatusCode::kAborted, "GROUP_LOST", message);
  return Retryable(Error(absl::StatusCode::kUnavailable, "GROUP_LOST", message), absl::Seconds(1));
}

ApiError FromDone(const Done& done, absl::Duration retry_after) {
  if (done.reason == "DEADLINE") return DeadlineExceeded(done.stage);
  ApiError error = Error(done.code, done.reason, done.message);
  if (done.code == absl::StatusCode::kUnavailable ||
      done.code == absl::StatusCode::kResourceExhausted) {
    error.retry_after = retry_after;
  }
  for (const std::string& violation : done.violations) {
    const size_t colon = violation.find(": ");
    error.violations.push_back(
        colon == std::string::npos
            ? FieldViolation{"", violation}
            : FieldViolation{violation.substr(0, colon), violation.substr(colon + 2)});
  }
  return error;
}

}  // namespace bough::router
