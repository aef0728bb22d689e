// bough generate: one request, its text on stdout as it comes, its figures on stderr.
#include <algorithm>

#include "bough/v1/generation.grpc.pb.h"
#include "client/answer.h"
#include "client/choice_printer.h"
#include "client/commands.h"
#include "client/connection.h"
#include "client/request_flags.h"
#include "client/route_table.h"

namespace bough::client {
namespace {

using v1::GenerationService;

grpc::Status CallStream(GenerationService::Stub& stub, const v1::GenerateRequest& request,
                        grpc::ClientContext& context, ChoicePrinter* printer,
                        v1::GenerateResponse* answer) {
  v1::GenerateStreamRequest stream_request;
  *stream_request.mutable_request() = request;
  auto reader = stub.GenerateStream(&context, stream_request);
  v1::GenerateStreamResponse event;
  while (reader->Read(&event)) {
    Fold(event, answer);
    if (printer != nullptr) printer->Update(*answer);
  }
  return reader->Finish();
}

}  // namespace

int RunGenerate(const Args& args, Io& io) {
  v1::GenerateRequest request;
  Connection connection;
  PromptFlags prompt;
  bool json = false, explain = false;
  FlagSet flags(
      "bough generate", "[PROMPT]",
      "Streams the continuation of PROMPT (or of a file, token ids, or stdin) to stdout.");
  prompt.AddFlags(flags);
  AddSamplingFlags(flags, &request);
  flags.Add("json", "", "one JSON object on stdout instead of text", &json);
  flags.Add("explain", "", "on stderr, what each group would have cost", &explain);
  connection.AddFlags(flags);
  if (FlagSet::WantsHelp(args)) {
    io.out << flags.Help();
    return kExitOk;
  }
  const auto positional = flags.Parse(args);
  if (!positional.ok()) return UsageError(positional.status(), io);
  if (absl::Status s = prompt.Resolve(*positional, io, &request); !s.ok()) return UsageError(s, io);
  if (explain) request.mutable_output()->set_explain_route(true);

  const bool unary = request.sampling().best_of() > std::max(1, request.sampling().n());
  grpc::ClientContext context;
  connection.Prepare(context);
  auto stub = GenerationService::NewStub(connection.ServerChannel());
  ChoicePrinter printer(io.out, request.sampling().n() > 1);
  v1::GenerateResponse answer;
  // Ctrl-C ends the call, and with it the server's work for it.
  InterruptScope on_interrupt(io.interrupt, [&context] { context.TryCancel(); });
  const grpc::Status status =
      unary ? stub->Generate(&context, request, &answer)
            : CallStream(*stub, request, context, json ? nullptr : &printer, &answer);

  if (!json) printer.Finish(answer);
  if (io.interrupt.raised()) {
    io.err << "cancelled\n";
    return kExitInterrupt;
  }
  if (!status.ok()) {
    io.err << "error: " << DescribeError(status) << "\n";
    return kExitError;
  }
  if (json) io.out << ToJson(answer) << "\n" << std::flush;
  if (explain) io.err << RouteTable({answer.route().begin(), answer.route().end()});
  io.err << SummaryLine(answer) << "\n";
  return kExitOk;
}

}  // namespace bough::client
