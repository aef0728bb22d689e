// bough.v1.ModelService: what is served, and the limits that Generate really applies.
#pragma once

#include "bough/v1/model.grpc.pb.h"
#include "router/router.h"

namespace bough::router {

class ModelServiceImpl final : public v1::ModelService::CallbackService {
 public:
  // `router` outlives this.
  explicit ModelServiceImpl(const Router* router) : router_(router) {}

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override;

 private:
  const Router* const router_;
};

}  // namespace bough::router
