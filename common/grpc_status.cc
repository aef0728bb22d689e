#include "common/grpc_status.h"

#include <algorithm>
#include <utility>

#include "google/rpc/error_details.pb.h"

namespace bough {
namespace {

constexpr char kDomain[] = "bough";

// Trailers share one HTTP/2 header list, which gRPC clients limit to 8 KiB by default: a status
// that does not fit reaches them as an unexplained RESOURCE_EXHAUSTED.
constexpr size_t kMaxMessageBytes = 1024;
constexpr size_t kMaxDetailsBytes = 4096;

std::string Truncate(std::string text) {
  if (text.size() <= kMaxMessageBytes) return text;
  size_t end = kMaxMessageBytes;
  while (end > 0 && (text[end] & 0xC0) == 0x80) --end;  // not inside a UTF-8 character
  text.resize(end);
  return text + "...";
}

google::protobuf::Duration ToProto(absl::Duration d) {
  const int64_t nanos = absl::ToInt64Nanoseconds(d);
  google::protobuf::Duration proto;
  proto.set_seconds(nanos / 1000000000);
  proto.set_nanos(static_cast<int32_t>(nanos % 1000000000));
  return proto;
}

absl::Duration FromProto(const google::protobuf::Duration& proto) {
  return absl::Seconds(proto.seconds()) + absl::Nanoseconds(proto.nanos());
}

google::rpc::BadRequest ToProto(const std::vector<FieldViolation>& violations) {
  google::rpc::BadRequest proto;
  size_t num_bytes = 0;
  for (const FieldViolation& v : violations) {
    auto* out = proto.add_field_violations();
    out->set_field(Truncate(v.field));
    out->set_description(Truncate(v.description));
    num_bytes += out->ByteSizeLong();
    if (num_bytes > kMaxDetailsBytes) {
      proto.mutable_field_violations()->RemoveLast();
      break;
    }
  }
  return proto;
}

void Unpack(const google::protobuf::Any& detail, ApiError& error) {
  google::rpc::ErrorInfo info;
  google::rpc::BadRequest bad_request;
  google::rpc::RetryInfo retry;
  google::rpc::ResourceInfo resource;
  if (detail.UnpackTo(&info)) {
    error.reason = info.reason();
    error.metadata = {info.metadata().begin(), info.metadata().end()};
  } else if (detail.UnpackTo(&bad_request)) {
    for (const auto& v : bad_request.field_violations()) {
      error.violations.push_back({v.field(), v.description()});
    }
  } else if (detail.UnpackTo(&retry)) {
    error.retry_after = FromProto(retry.retry_delay());
  } else if (detail.UnpackTo(&resource)) {
    error.resource_type = resource.resource_type();
    error.resource_name = resource.resource_name();
  }
}

}  // namespace

ApiError InvalidRequest(std::vector<FieldViolation> violations) {
  ApiError error;
  error.code = absl::StatusCode::kInvalidArgument;
  error.reason = "INVALID_REQUEST";
  if (!violations.empty()) {
    error.message = violations[0].field + ": " + violations[0].description;
  }
  error.violations = std::move(violations);
  return error;
}

grpc::Status ToGrpcStatus(const ApiError& error) {
  if (error.code == absl::StatusCode::kOk) return grpc::Status::OK;
  google::rpc::Status proto;
  proto.set_code(static_cast<int>(error.code));
  proto.set_message(Truncate(error.message));
  if (!error.reason.empty() || !error.metadata.empty()) {
    google::rpc::ErrorInfo info;
    info.set_reason(error.reason);
    info.set_domain(kDomain);
    info.mutable_metadata()->insert(error.metadata.begin(), error.metadata.end());
    proto.add_details()->PackFrom(info);
  }
  if (!error.violations.empty()) proto.add_details()->PackFrom(ToProto(error.violations));
  if (error.retry_after.has_value()) {
    google::rpc::RetryInfo retry;
    *retry.mutable_retry_delay() = ToProto(*error.retry_after);
    proto.add_details()->PackFrom(retry);
  }
  if (!error.resource_type.empty() || !error.resource_name.empty()) {
    google::rpc::ResourceInfo resource;
    resource.set_resource_type(error.resource_type);
    resource.set_resource_name(Truncate(error.resource_name));
    proto.add_details()->PackFrom(resource);
  }
  const auto code = static_cast<grpc::StatusCode>(error.code);
  return grpc::Status(code, proto.message(), proto.SerializeAsString());
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  ApiError error;
  error.code = status.code();
  error.message = std::string(status.message());
  return ToGrpcStatus(error);
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

std::optional<ApiError> FromDetails(const grpc::Status& status) {
  google::rpc::Status proto;
  if (status.error_details().empty() || !proto.ParseFromString(status.error_details())) {
    return std::nullopt;
  }
  ApiError error;
  error.code = static_cast<absl::StatusCode>(proto.code());
  error.message = proto.message();
  for (const auto& detail : proto.details()) Unpack(detail, error);
  return error;
}

}  // namespace bough
