#include "router/server.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"

namespace bough::router {
namespace {

// Above max_request_bytes, so that a request which is too large is refused by us, with its size and
// limit, and not by gRPC as RESOURCE_EXHAUSTED.
constexpr int64_t kMinReceiveBytes = 64 << 20;

void Configure(grpc::ServerBuilder& builder, const std::string& address, int64_t max_request_bytes,
               int* port) {
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), port);
  // A second router on the same port must fail, not silently take half of the clients.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetMaxReceiveMessageSize(static_cast<int>(
      std::min<int64_t>(std::max(4 * max_request_bytes, kMinReceiveBytes), 1 << 30)));
  builder.SetMaxSendMessageSize(-1);
}

}  // namespace

Server::Server(Router* router)
    : router_(router), generation_(router), model_(router), admin_(router) {}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(Router* router) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  const RouterConfig& config = router->config();
  std::unique_ptr<Server> server(new Server(router));

  grpc::ServerBuilder public_builder;
  Configure(public_builder, config.listen, config.max_request_bytes, &server->public_port_);
  public_builder.RegisterService(&server->generation_);
  public_builder.RegisterService(&server->model_);
  server->public_server_ = public_builder.BuildAndStart();
  if (server->public_server_ == nullptr || server->public_port_ == 0) {
    return absl::UnavailableError(absl::StrCat("--listen: cannot bind ", config.listen));
  }
  grpc::ServerBuilder admin_builder;
  Configure(admin_builder, config.admin_listen, config.max_request_bytes, &server->admin_port_);
  admin_builder.RegisterService(&server->admin_);
  server->admin_server_ = admin_builder.BuildAndStart();
  if (server->admin_server_ == nullptr || server->admin_port_ == 0) {
    return absl::UnavailableError(
        absl::StrCat("--admin-listen: cannot bind ", config.admin_listen));
  }
  server->SetServing(false);
  router->OnServingChange([raw = server.get()](bool serving) { raw->SetServing(serving); });
  return server;
}

Server::~Server() { Shutdown(absl::ZeroDuration()); }

void Server::SetServing(bool serving) {
  for (auto* server : {public_server_.get(), admin_server_.get()}) {
    grpc::HealthCheckServiceInterface* health = server->GetHealthCheckService();
    health->SetServingStatus(serving);  // all services that are known by name, and ""
    for (const char* name : {"", "bough.v1.GenerationService", "bough.v1.ModelService"}) {
      if (server == public_server_.get() || name[0] == '\0') {
        health->SetServingStatus(name, serving);
      }
    }
  }
  admin_server_->GetHealthCheckService()->SetServingStatus("bough.v1.AdminService", serving);
}

void Server::Shutdown(absl::Duration grace) {
  router_->OnServingChange(nullptr);
  const auto deadline = std::chrono::system_clock::now() + absl::ToChronoMilliseconds(grace);
  // Public first: an operator can look on while streams end.
  if (public_server_) public_server_->Shutdown(deadline);
  if (admin_server_) admin_server_->Shutdown(deadline);
}

}  // namespace bough::router
