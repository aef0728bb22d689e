// bough.v1.AdminService: for operators, on a port of its own.
#pragma once

#include "absl/time/time.h"
#include "bough/v1/admin.grpc.pb.h"
#include "router/router.h"

namespace bough::router {

class AdminServiceImpl final : public v1::AdminService::CallbackService {
 public:
  // `router` outlives this. Uptime counts from now.
  explicit AdminServiceImpl(Router* router);

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const v1::GetServerInfoRequest* request,
                                          v1::GetServerInfoResponse* response) override;
  grpc::ServerUnaryReactor* ListGroups(grpc::CallbackServerContext* context,
                                       const v1::ListGroupsRequest* request,
                                       v1::ListGroupsResponse* response) override;
  grpc::ServerUnaryReactor* GetLoadProgress(grpc::CallbackServerContext* context,
                                            const v1::GetLoadProgressRequest* request,
                                            v1::GetLoadProgressResponse* response) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;
  grpc::ServerUnaryReactor* Undrain(grpc::CallbackServerContext* context,
                                    const v1::UndrainRequest* request,
                                    v1::UndrainResponse* response) override;
  grpc::ServerUnaryReactor* CancelRequest(grpc::CallbackServerContext* context,
                                          const v1::CancelRequestRequest* request,
                                          v1::CancelRequestResponse* response) override;
  grpc::ServerUnaryReactor* ExplainRoute(grpc::CallbackServerContext* context,
                                         const v1::ExplainRouteRequest* request,
                                         v1::ExplainRouteResponse* response) override;

 private:
  // For this router when `group` is empty.
  grpc::Status SetDraining(const std::string& group, bool on);

  Router* const router_;
  const absl::Time started_;
};

}  // namespace bough::router
