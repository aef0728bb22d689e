// bough.v1.GenerationService. Requests are taken as bytes, so that size, encoding and unknown
// fields are answered by us, with details, and not by gRPC without any.
#pragma once

#include "bough/v1/generation.grpc.pb.h"
#include "router/router.h"

namespace bough::router {

class GenerationServiceImpl final : public v1::GenerationService::WithRawCallbackMethod_Generate<
                                        v1::GenerationService::WithRawCallbackMethod_GenerateStream<
                                            v1::GenerationService::WithRawCallbackMethod_Tokenize<
                                                v1::GenerationService::Service>>> {
 public:
  // `router` outlives this.
  explicit GenerationServiceImpl(Router* router) : router_(router) {}

  grpc::ServerUnaryReactor* Generate(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerateStream(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;

 private:
  Router* const router_;
};

}  // namespace bough::router
