#include "router/generation_service.h"

#include <utility>

#include "router/api_errors.h"
#include "router/call.h"
#include "router/parse_request.h"
#include "router/stream_call.h"
#include "router/unary_call.h"

namespace bough::router {

grpc::ServerUnaryReactor* GenerationServiceImpl::Generate(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request,
                                                          grpc::ByteBuffer* response) {
  return new UnaryCall(router_, context, *request, response);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationServiceImpl::GenerateStream(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  return new StreamCall(router_, context, *request);
}

grpc::ServerUnaryReactor* GenerationServiceImpl::Tokenize(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* bytes,
                                                          grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  v1::TokenizeRequest message;
  if (auto error = ParseMessage(*bytes, router_->config().max_request_bytes, &message)) {
    reactor->Finish(ToGrpcStatus(*error));
    return reactor;
  }
  ServedModel model;
  model.name = router_->config().served_model_name;
  auto ids = ParsePrompt(message, model, router_->tokenizer());
  if (const auto* error = std::get_if<ApiError>(&ids)) {
    reactor->Finish(ToGrpcStatus(*error));
    return reactor;
  }
  v1::TokenizeResponse out;
  const auto& tokens = std::get<std::vector<int32_t>>(ids);
  out.mutable_token_ids()->Add(tokens.begin(), tokens.end());
  *response = SerializeMessage(out);
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace bough::router
