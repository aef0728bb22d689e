#include "router/admin_service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "router/api_errors.h"
#include "router/api_translation.h"
#include "router/clock.h"
#include "router/parse_request.h"
#include "router/version.h"

namespace bough::router {
namespace {

grpc::ServerUnaryReactor* Reply(grpc::CallbackServerContext* context, const grpc::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(status);
  return reactor;
}

}  // namespace

AdminServiceImpl::AdminServiceImpl(Router* router) : router_(router), started_(MonotonicNow()) {}

grpc::ServerUnaryReactor* AdminServiceImpl::GetServerInfo(grpc::CallbackServerContext* context,
                                                          const v1::GetServerInfoRequest*,
                                                          v1::GetServerInfoResponse* response) {
  response->set_version(kVersion);
  response->set_model(router_->config().served_model_name);
  response->set_uptime_seconds(absl::ToDoubleSeconds(MonotonicNow() - started_));
  router_->Inspect([response](const Dispatcher& d) {
    response->set_ready_groups(d.groups().num_ready());
    response->set_requests_in_flight(d.num_in_flight());
    response->set_requests_held(d.num_held());
    response->set_draining(d.draining());
  });
  return Reply(context, grpc::Status::OK);
}

grpc::ServerUnaryReactor* AdminServiceImpl::ListGroups(grpc::CallbackServerContext* context,
                                                       const v1::ListGroupsRequest*,
                                                       v1::ListGroupsResponse* response) {
  const absl::Time now = MonotonicNow();
  router_->Inspect([&](const Dispatcher& d) {
    for (int g = 0; g < d.groups().size(); ++g) {
      *response->add_groups() = ToProto(d.groups()[g], d.groups().index().num_blocks(g), now);
    }
  });
  return Reply(context, grpc::Status::OK);
}

grpc::ServerUnaryReactor* AdminServiceImpl::GetLoadProgress(grpc::CallbackServerContext* context,
                                                            const v1::GetLoadProgressRequest*,
                                                            v1::GetLoadProgressResponse* response) {
  router_->Inspect([response](const Dispatcher& d) {
    for (int g = 0; g < d.groups().size(); ++g) {
      v1::GroupProgress* group = response->add_groups();
      group->set_group(d.groups()[g].address.name);
      for (const auto& [rank, progress] : d.groups()[g].progress) {
        v1::RankProgress* m = group->add_ranks();
        m->set_rank(rank);
        m->set_phase(progress.phase);
        m->set_bytes_done(progress.bytes_done);
        m->set_bytes_total(progress.bytes_total);
      }
    }
  });
  return Reply(context, grpc::Status::OK);
}

grpc::Status AdminServiceImpl::SetDraining(const std::string& group, bool on) {
  LogInfo(on ? "drain" : "undrain", {{"group", group}});
  if (group.empty()) {
    router_->SetDraining(on);
  } else if (!router_->SetGroupDraining(group, on)) {
    ApiError error;
    error.code = absl::StatusCode::kNotFound;
    error.reason = "GROUP_NOT_FOUND";
    error.message = absl::StrCat("group: there is no \"", group, "\"");
    error.resource_type = "bough.v1.Group";
    error.resource_name = group;
    return ToGrpcStatus(error);
  }
  return grpc::Status::OK;
}

grpc::ServerUnaryReactor* AdminServiceImpl::Drain(grpc::CallbackServerContext* context,
                                                  const v1::DrainRequest* request,
                                                  v1::DrainResponse* response) {
  const grpc::Status status = SetDraining(request->group(), true);
  router_->Inspect([&](const Dispatcher& d) {
    const int g = d.groups().Find(request->group());
    response->set_requests_in_flight(g < 0 ? d.num_in_flight() : d.groups()[g].requests_here);
  });
  return Reply(context, status);
}

grpc::ServerUnaryReactor* AdminServiceImpl::Undrain(grpc::CallbackServerContext* context,
                                                    const v1::UndrainRequest* request,
                                                    v1::UndrainResponse*) {
  return Reply(context, SetDraining(request->group(), false));
}

grpc::ServerUnaryReactor* AdminServiceImpl::CancelRequest(grpc::CallbackServerContext* context,
                                                          const v1::CancelRequestRequest* request,
                                                          v1::CancelRequestResponse*) {
  if (router_->EndByRequestId(request->request_id(), CancelledByOperator())) {
    return Reply(context, grpc::Status::OK);
  }
  ApiError error;
  error.code = absl::StatusCode::kNotFound;
  error.reason = "REQUEST_NOT_FOUND";
  error.message =
      absl::StrCat("request_id: no request \"", request->request_id(), "\" is in flight");
  error.resource_type = "bough.v1.Request";
  error.resource_name = request->request_id();
  return Reply(context, ToGrpcStatus(error));
}

grpc::ServerUnaryReactor* AdminServiceImpl::ExplainRoute(grpc::CallbackServerContext* context,
                                                         const v1::ExplainRouteRequest* request,
                                                         v1::ExplainRouteResponse* response) {
  ServedModel model{.name = router_->config().served_model_name,
                    .limits = {},
                    .default_max_tokens = router_->config().default_max_tokens};
  std::optional<ApiError> not_ready;
  router_->Inspect([&](const Dispatcher& d) {
    model.limits = d.model().limits;
    if (model.limits.max_model_len == 0) not_ready = d.CheckReady();
  });
  if (not_ready) return Reply(context, ToGrpcStatus(*not_ready));
  auto parsed = ParseRequest(request->request(), /*stream=*/false, model, router_->tokenizer(),
                             "explain", /*random=*/0);
  if (const auto* error = std::get_if<ApiError>(&parsed)) {
    return Reply(context, ToGrpcStatus(*error));
  }
  const auto& wanted = std::get<std::shared_ptr<Request>>(parsed);
  response->set_prompt_tokens(static_cast<int32_t>(wanted->prompt_ids.size()));
  router_->Inspect([&](const Dispatcher& d) {
    AddRoute(d.Explain(*wanted), response->mutable_candidates());
    response->set_requests_held(d.num_held());
  });
  return Reply(context, grpc::Status::OK);
}

}  // namespace bough::router
