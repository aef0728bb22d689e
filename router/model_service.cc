#include "router/model_service.h"

#include "router/api_errors.h"
#include "router/api_translation.h"

namespace bough::router {
namespace {

v1::Model Served(const Router& router) {
  v1::Model model;
  router.Inspect([&](const Dispatcher& d) {
    model = ToModel(d.model(), router.config(), d.groups().num_ready());
  });
  return model;
}

}  // namespace

grpc::ServerUnaryReactor* ModelServiceImpl::ListModels(grpc::CallbackServerContext* context,
                                                       const v1::ListModelsRequest*,
                                                       v1::ListModelsResponse* response) {
  *response->add_models() = Served(*router_);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* ModelServiceImpl::GetModel(grpc::CallbackServerContext* context,
                                                     const v1::GetModelRequest* request,
                                                     v1::GetModelResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const std::string& served = router_->config().served_model_name;
  if (!request->name().empty() && request->name() != served) {
    reactor->Finish(ToGrpcStatus(UnknownModel(request->name(), served)));
    return reactor;
  }
  *response->mutable_model() = Served(*router_);
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace bough::router
