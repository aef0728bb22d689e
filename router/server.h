// The router's two gRPC servers: the public API, and AdminService on its own port. Both have
// grpc.health.v1, which follows Router::IsServing, and reflection.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/grpcpp.h"
#include "router/admin_service.h"
#include "router/generation_service.h"
#include "router/model_service.h"
#include "router/router.h"

namespace bough::router {

class Server {
 public:
  // Listens on config.listen and config.admin_listen. UNAVAILABLE when a port cannot be bound.
  // `router` outlives this.
  static absl::StatusOr<std::unique_ptr<Server>> Start(Router* router);
  ~Server();

  int public_port() const { return public_port_; }
  int admin_port() const { return admin_port_; }

  // Accepts no more calls; those that last longer than `grace` are cancelled. Blocks until none is
  // left.
  void Shutdown(absl::Duration grace);

 private:
  explicit Server(Router* router);
  void SetServing(bool serving);

  Router* const router_;
  GenerationServiceImpl generation_;
  ModelServiceImpl model_;
  AdminServiceImpl admin_;
  int public_port_ = 0, admin_port_ = 0;
  std::unique_ptr<grpc::Server> public_server_, admin_server_;
};

}  // namespace bough::router
