// bough route: where a prompt would go now, and why. Nothing is generated.
#include "bough/v1/admin.grpc.pb.h"
#include "client/commands.h"
#include "client/connection.h"
#include "client/request_flags.h"
#include "client/route_table.h"

namespace bough::client {

int RunRoute(const Args& args, Io& io) {
  v1::ExplainRouteRequest request;
  Connection connection;
  PromptFlags prompt;
  FlagSet flags(
      "bough route", "[PROMPT]",
      "Shows what each group would cost for PROMPT, term by term; '*' wins, '-' takes none.");
  prompt.AddFlags(flags);
  AddSamplingFlags(flags, request.mutable_request());
  connection.AddFlags(flags);
  if (FlagSet::WantsHelp(args)) {
    io.out << flags.Help();
    return kExitOk;
  }
  const auto positional = flags.Parse(args);
  if (!positional.ok()) return UsageError(positional.status(), io);
  if (absl::Status s = prompt.Resolve(*positional, io, request.mutable_request()); !s.ok()) {
    return UsageError(s, io);
  }

  grpc::ClientContext context;
  connection.PrepareAdmin(context);
  InterruptScope on_interrupt(io.interrupt, [&context] { context.TryCancel(); });
  v1::ExplainRouteResponse response;
  const grpc::Status status = v1::AdminService::NewStub(connection.AdminChannel())
                                  ->ExplainRoute(&context, request, &response);
  if (io.interrupt.raised()) return kExitInterrupt;
  if (!status.ok()) {
    io.err << "error: " << DescribeError(status) << "\n";
    return kExitError;
  }
  io.out << "prompt_tokens=" << response.prompt_tokens() << "\n"
         << RouteTable({response.candidates().begin(), response.candidates().end()});
  if (response.requests_held() > 0) {
    io.out << response.requests_held() << " requests wait at the router for their turn\n";
  }
  return kExitOk;
}

}  // namespace bough::client
