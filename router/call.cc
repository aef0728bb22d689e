#include "router/call.h"

#include <algorithm>
#include <chrono>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/log.h"
#include "grpcpp/support/proto_buffer_reader.h"
#include "grpcpp/support/proto_buffer_writer.h"
#include "router/api_errors.h"
#include "router/clock.h"
#include "router/parse_request.h"

namespace bough::router {
namespace {

constexpr size_t kMaxTraceparentBytes = 256;
constexpr size_t kMaxTenantBytes = 128;

uint64_t Random() {
  thread_local absl::BitGen gen;
  return absl::Uniform<uint64_t>(gen);
}

std::string Metadata(const grpc::CallbackServerContext& context, const char* key) {
  const auto it = context.client_metadata().find(key);
  return it == context.client_metadata().end() ? ""
                                               : std::string(it->second.data(), it->second.size());
}

// The client's deadline on the monotonic clock, a little early: once it has passed, gRPC itself
// ends the call and our answer, which names the stage, would not arrive.
absl::Time Deadline(const grpc::CallbackServerContext& context, absl::Time arrival) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  const absl::Duration left = absl::FromChrono(deadline - std::chrono::system_clock::now());
  // A client without a deadline may arrive as one in centuries.
  if (left > absl::Hours(24 * 365)) return absl::InfiniteFuture();
  return arrival + left - std::clamp(left / 20, absl::ZeroDuration(), absl::Milliseconds(50));
}

}  // namespace

std::optional<ApiError> ParseMessage(const grpc::ByteBuffer& bytes, int64_t max_bytes,
                                     google::protobuf::Message* message) {
  const std::string name = message->GetDescriptor()->name();
  if (static_cast<int64_t>(bytes.Length()) > max_bytes) {
    return InvalidRequest(
        {{name, absl::StrCat("must be at most ", max_bytes, " bytes, is ", bytes.Length())}});
  }
  grpc::ByteBuffer copy = bytes;  // shares the slices
  grpc::ProtoBufferReader reader(&copy);
  if (reader.status().ok() && message->ParseFromZeroCopyStream(&reader)) return std::nullopt;
  return InvalidRequest(
      {{name, "must be a valid message: its encoding is broken or a string is not UTF-8"}});
}

grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message) {
  grpc::ByteBuffer bytes;
  bool own_buffer;
  const grpc::Status status =
      grpc::SerializationTraits<google::protobuf::Message>::Serialize(message, &bytes, &own_buffer);
  CHECK(status.ok()) << status.error_message();
  return bytes;
}

Call::Call(Router* router, grpc::CallbackServerContext* context)
    : router_(router),
      context_(context),
      arrival_(MonotonicNow()),
      request_id_(Metadata(*context, "x-request-id")),
      traceparent_(Metadata(*context, "traceparent")) {
  // As the trace standard asks, a traceparent that cannot be one is dropped, not an error.
  if (traceparent_.size() > kMaxTraceparentBytes) traceparent_.clear();
}

Call::~Call() {
  if (!log_.is_null()) LogInfo("request finished", std::move(log_));
}

std::variant<std::shared_ptr<Request>, ApiError> Call::Read(const v1::GenerateRequest& message,
                                                            bool stream) {
  ServedModel model{.name = router_->config().served_model_name,
                    .limits = {},
                    .default_max_tokens = router_->config().default_max_tokens};
  std::optional<ApiError> not_ready;
  router_->Inspect([&](const Dispatcher& d) {
    model.limits = d.model().limits;
    not_ready = d.CheckReady();
  });
  if (message.has_request_id()) {
    request_id_ = message.request_id();
  } else if (request_id_.empty()) {
    request_id_ = absl::StrFormat("%016x%016x", Random(), Random());
  }
  if (auto bad =
          CheckRequestId(message.has_request_id() ? "request_id" : "x-request-id", request_id_);
      !bad.empty()) {
    request_id_.clear();
    return InvalidRequest(std::move(bad));
  }
  context_->AddInitialMetadata("x-request-id", request_id_);
  // Before a group has said what it serves there are no limits to check against.
  if (model.limits.max_model_len == 0) return *not_ready;
  std::string tenant = Metadata(*context_, "x-tenant");
  if (tenant.size() > kMaxTenantBytes) tenant.resize(kMaxTenantBytes);
  auto parsed = ParseRequest(message, stream, model, router_->tokenizer(), request_id_, Random());
  if (auto* request = std::get_if<std::shared_ptr<Request>>(&parsed)) {
    (*request)->arrival = arrival_;
    (*request)->deadline = Deadline(*context_, arrival_);
    (*request)->traceparent = traceparent_;
    // Whoever gives no name is told apart by what he shares cached prompts with.
    (*request)->tenant = tenant.empty() ? (*request)->cache_salt : std::move(tenant);
  }
  return parsed;
}

grpc::Status Call::Finish(const ApiError* error, const RequestSummary& s) {
  const absl::StatusCode code = error == nullptr ? absl::StatusCode::kOk : error->code;
  const double seconds = absl::ToDoubleSeconds(MonotonicNow() - arrival_);
  router_->metrics().CountCall(code, seconds);
  log_ = {{"request_id", request_id_},
          {"code", absl::StatusCodeToString(code)},
          {"seconds", seconds},
          {"prompt_tokens", s.prompt_tokens},
          {"cached_prompt_tokens", s.cached_prompt_tokens},
          {"generated_tokens", s.completion_tokens}};
  if (!traceparent_.empty()) log_["traceparent"] = traceparent_;
  if (!s.group.empty()) log_["group"] = s.group;
  if (s.ttft_seconds >= 0) log_["ttft_seconds"] = s.ttft_seconds;
  if (s.retries > 0) log_["retries"] = s.retries;
  if (error != nullptr) {
    log_["reason"] = error->reason;
    log_["error"] = error->message;
  }
  return error == nullptr ? grpc::Status::OK : ToGrpcStatus(*error);
}

}  // namespace bough::router
