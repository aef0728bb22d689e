// One Generate call: a stream's events gathered into one message.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "grpcpp/grpcpp.h"
#include "router/call.h"
#include "router/router.h"

namespace bough::router {

// Deletes itself when gRPC is done with it. Events come under the router's lock.
class UnaryCall final : public grpc::ServerUnaryReactor {
 public:
  // `response` lives as long as the call.
  UnaryCall(Router* router, grpc::CallbackServerContext* context, const grpc::ByteBuffer& bytes,
            grpc::ByteBuffer* response);

  void OnCancel() override;
  void OnDone() override { delete this; }

 private:
  // OnDone and OnCancel are short: gRPC need not wake a thread of its executor for them.
  bool InternalInlineable() override { return true; }

  // Reads and starts the request, or says why not.
  std::optional<ApiError> Begin(const grpc::ByteBuffer& bytes);
  void OnEvent(const ClientEvent& event);
  void OnEnd(const EndEvent& end);

  Router* const router_;
  Call call_;
  grpc::ByteBuffer* const response_;
  std::shared_ptr<const Request> request_;
  uint64_t handle_ = 0;
  v1::GenerateResponse message_;
  std::vector<v1::Choice> choices_;    // best_of of them
  std::vector<double> mean_logprobs_;  // as choices_
};

}  // namespace bough::router
