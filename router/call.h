// What Generate and GenerateStream share: reading a call's bytes and metadata into a Request, and
// ending it with exactly one status, metric and log line.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <variant>

#include "absl/time/time.h"
#include "bough/v1/generation.pb.h"
#include "common/grpc_status.h"
#include "grpcpp/grpcpp.h"
#include "nlohmann/json.hpp"
#include "router/client_events.h"
#include "router/request.h"
#include "router/router.h"

namespace bough::router {

// Parses `bytes` as `message`; an ApiError when they are too many or no such message (protobuf
// refuses broken encodings and strings that are not UTF-8).
std::optional<ApiError> ParseMessage(const grpc::ByteBuffer& bytes, int64_t max_bytes,
                                     google::protobuf::Message* message);
grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message);

// One call; lives in its reactor. Not thread-safe.
class Call {
 public:
  // Arrival is now.
  Call(Router* router, grpc::CallbackServerContext* context);
  // Writes the log line: not in Finish, which is called under the router's lock.
  ~Call();

  // The validated request; sets the call's id and echoes it in the initial metadata.
  std::variant<std::shared_ptr<Request>, ApiError> Read(const v1::GenerateRequest& message,
                                                        bool stream);
  // Called once, with the error or nullptr.
  grpc::Status Finish(const ApiError* error, const RequestSummary& summary);

  absl::Time arrival() const { return arrival_; }

 private:
  Router* const router_;
  grpc::CallbackServerContext* const context_;
  const absl::Time arrival_;
  std::string request_id_;
  std::string traceparent_;
  nlohmann::json log_;  // null until Finish
};

}  // namespace bough::router
