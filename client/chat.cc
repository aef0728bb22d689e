// bough chat: the whole conversation goes to the server each turn; its prefix cache makes that
// cheap.
#include "absl/strings/str_format.h"
#include "bough/v1/generation.grpc.pb.h"
#include "client/answer.h"
#include "client/choice_printer.h"
#include "client/commands.h"
#include "client/connection.h"
#include "client/request_flags.h"

namespace bough::client {
namespace {

constexpr char kHelp[] =
    "/reset  forget the conversation\n"
    "/quit   leave (Ctrl-D too); Ctrl-C ends an answer\n"
    "/help   this text\n";

class Conversation {
 public:
  Conversation(v1::GenerateRequest request, std::string system, const Connection& connection,
               Io& io)
      : request_(std::move(request)),
        system_(std::move(system)),
        connection_(connection),
        stub_(v1::GenerationService::NewStub(connection.ServerChannel())),
        io_(io) {
    Reset();
  }

  void Reset() {
    request_.mutable_chat()->clear_messages();
    if (!system_.empty()) Append(v1::ROLE_SYSTEM, system_);
  }

  // Asks, prints the answer, and remembers both; a failed turn is forgotten.
  grpc::Status Say(const std::string& text) {
    Append(v1::ROLE_USER, text);
    v1::GenerateResponse answer;
    const grpc::Status status = Stream(&answer);
    const std::string reply = answer.choices_size() > 0 ? answer.choices(0).text() : "";
    if (status.ok() || (!reply.empty() && status.error_code() == grpc::StatusCode::CANCELLED)) {
      Append(v1::ROLE_ASSISTANT, reply);
    } else {
      request_.mutable_chat()->mutable_messages()->RemoveLast();
    }
    if (status.ok()) PrintFigures(answer);
    return status;
  }

 private:
  void Append(v1::Role role, const std::string& text) {
    v1::ChatMessage* message = request_.mutable_chat()->add_messages();
    message->set_role(role);
    message->set_content(text);
  }

  grpc::Status Stream(v1::GenerateResponse* answer) {
    grpc::ClientContext context;
    connection_.Prepare(context);
    InterruptScope on_interrupt(io_.interrupt, [&context] { context.TryCancel(); });
    v1::GenerateStreamRequest request;
    *request.mutable_request() = request_;
    auto reader = stub_->GenerateStream(&context, request);
    ChoicePrinter printer(io_.out, /*headers=*/false);
    v1::GenerateStreamResponse event;
    while (reader->Read(&event)) {
      Fold(event, answer);
      printer.Update(*answer);
    }
    printer.Finish(*answer);
    return reader->Finish();
  }

  void PrintFigures(const v1::GenerateResponse& answer) {
    if (io_.err_tty) io_.err << "\033[2m";
    io_.err << SummaryLine(answer);
    if (io_.err_tty) io_.err << "\033[0m";
    io_.err << std::endl;
  }

  v1::GenerateRequest request_;
  const std::string system_;
  const Connection& connection_;
  const std::unique_ptr<v1::GenerationService::Stub> stub_;
  Io& io_;
};

}  // namespace

int RunChat(const Args& args, Io& io) {
  v1::GenerateRequest request;
  Connection connection;
  std::string system;
  FlagSet flags("bough chat", "", "Talks with the model; every line of stdin is a turn.");
  flags.Add("system", "TEXT", "system message, put before the first turn", &system);
  AddSamplingFlags(flags, &request);
  connection.AddFlags(flags);
  if (FlagSet::WantsHelp(args)) {
    io.out << flags.Help() << "\ncommands:\n" << kHelp;
    return kExitOk;
  }
  const auto positional = flags.Parse(args);
  if (!positional.ok()) return UsageError(positional.status(), io);
  if (!positional->empty()) {
    return UsageError(
        absl::InvalidArgumentError("bough chat takes no argument: '" + positional->front() + "'"),
        io);
  }
  if (request.sampling().n() > 1 || request.sampling().best_of() > 1) {
    return UsageError(
        absl::InvalidArgumentError("bough chat has one answer per turn: --n must be 1"), io);
  }

  Conversation conversation(std::move(request), system, connection, io);
  std::string line;
  while (true) {
    if (io.in_tty) io.out << "> " << std::flush;
    if (!std::getline(io.in, line)) break;
    if (line.empty()) continue;
    if (line == "/quit") break;
    if (line == "/help") {
      io.out << kHelp;
    } else if (line == "/reset") {
      conversation.Reset();
    } else if (const grpc::Status status = conversation.Say(line); !status.ok()) {
      io.err << "error: " << DescribeError(status) << std::endl;
      if (!io.in_tty) return io.interrupt.raised() ? kExitInterrupt : kExitError;
    }
  }
  return kExitOk;
}

}  // namespace bough::client
