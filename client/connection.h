// Where the server is, how long to wait, and how its errors read.
#pragma once

#include <memory>
#include <string>

#include "absl/time/time.h"
#include "client/flags.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/status.h"

namespace bough::client {

struct Connection {
  std::string server = "127.0.0.1:50051";
  std::string admin = "127.0.0.1:50052";
  absl::Duration timeout = absl::InfiniteDuration();  // of each call

  // --server, --admin, --timeout. REQUIRES: this outlives flags.Parse.
  void AddFlags(FlagSet& flags);

  std::shared_ptr<grpc::Channel> ServerChannel() const;
  std::shared_ptr<grpc::Channel> AdminChannel() const;
  // Sets the deadline; calls to the admin port take at most 5 s.
  void Prepare(grpc::ClientContext& context) const;
  void PrepareAdmin(grpc::ClientContext& context) const;
};

// "INVALID_ARGUMENT", "UNAVAILABLE", ...
std::string CodeName(grpc::StatusCode code);

// One line: code, message, violations that the message does not name already, reason, retry-after.
std::string DescribeError(const grpc::Status& status);

}  // namespace bough::client
