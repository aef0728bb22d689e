// absl::Status -> grpc::Status with google.rpc details in the grpc-status-details-bin trailer. The only
// file where the two meet.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/sampling_params.h"
#include "grpcpp/support/status.h"

namespace bough {

// An error on its way to a client. `reason` is ErrorInfo.reason (UPPER_SNAKE), domain "bough".
struct ApiError {
  absl::StatusCode code = absl::StatusCode::kInternal;
  std::string message;
  std::string reason;
  std::map<std::string, std::string> metadata;  // ErrorInfo.metadata, e.g. stage=queue
  std::vector<FieldViolation> violations;       // BadRequest
  std::optional<absl::Duration> retry_after;    // RetryInfo
  std::string resource_type, resource_name;     // ResourceInfo, when set
};

// INVALID_ARGUMENT whose message repeats the first violation, so that a client without details sees it.
ApiError InvalidRequest(std::vector<FieldViolation> violations);

grpc::Status ToGrpcStatus(const ApiError& error);
grpc::Status ToGrpcStatus(const absl::Status& status);
absl::Status FromGrpcStatus(const grpc::Status& status);

// The details of a received status, for clients and tests; nullopt when it carries none.
std::optional<ApiError> FromDetails(const grpc::Status& status);

}  // namespace bough
