#include "client/connection.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "common/grpc_status.h"
#include "grpcpp/create_channel.h"

namespace bough::client {
namespace {

constexpr int kMaxMessageBytes = 256 << 20;  // 1024 long answers in one unary response
constexpr absl::Duration kAdminTimeout = absl::Seconds(5);

std::shared_ptr<grpc::Channel> Open(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

void SetTimeout(grpc::ClientContext& context, absl::Duration timeout) {
  if (timeout == absl::InfiniteDuration()) return;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
}

}  // namespace

void Connection::AddFlags(FlagSet& flags) {
  flags.Add("server", "HOST:PORT", "where the router serves", &server);
  flags.Add("admin", "HOST:PORT", "where the router serves operators", &admin);
  flags.Add("timeout", "DURATION", "deadline of a call, such as 30s", &timeout);
}

std::shared_ptr<grpc::Channel> Connection::ServerChannel() const { return Open(server); }
std::shared_ptr<grpc::Channel> Connection::AdminChannel() const { return Open(admin); }

void Connection::Prepare(grpc::ClientContext& context) const { SetTimeout(context, timeout); }
void Connection::PrepareAdmin(grpc::ClientContext& context) const {
  SetTimeout(context, std::min(timeout, kAdminTimeout));
}

std::string CodeName(grpc::StatusCode code) {
  return absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
}

std::string DescribeError(const grpc::Status& status) {
  std::string line = CodeName(status.error_code()) + ": " +
                     absl::StrReplaceAll(status.error_message(), {{"\n", " "}});
  const std::optional<ApiError> error = FromDetails(status);
  if (!error) return line;
  for (const FieldViolation& v : error->violations) {
    if (absl::StrContains(line, v.field) && absl::StrContains(line, v.description)) continue;
    absl::StrAppend(&line, "; ", v.field, ": ", v.description);
  }
  if (!error->reason.empty()) absl::StrAppend(&line, " reason=", error->reason);
  for (const auto& [key, value] : error->metadata) absl::StrAppend(&line, " ", key, "=", value);
  if (!error->resource_name.empty()) {
    absl::StrAppend(&line, " ", error->resource_type, "=", error->resource_name);
  }
  if (error->retry_after) {
    absl::StrAppend(&line, " retry_after=", absl::FormatDuration(*error->retry_after));
  }
  return line;
}

}  // namespace bough::client
