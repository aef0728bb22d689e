// bough-router as a process: start-up errors, signals and exit codes.

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bough/v1/generation.grpc.pb.h"
#include "common/grpc_status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/fake_group.h"
#include "tests/testing/tiny_tokenizer.h"

extern char** environ;

namespace bough::router {
namespace {

using ::bough::testing::FakeGroup;
using ::bough::testing::FakeScript;
using ::testing::HasSubstr;
using Stream = grpc::ClientReader<v1::GenerateStreamResponse>;

// A child whose output is read line by line.
class Process {
 public:
  explicit Process(std::vector<std::string> flags) {
    flags.insert(flags.begin(), ROUTER_BINARY);
    std::vector<char*> argv;
    for (std::string& flag : flags) argv.push_back(flag.data());
    argv.push_back(nullptr);
    int fds[2];
    CHECK_EQ(pipe2(fds, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fds[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, fds[1], STDERR_FILENO);
    CHECK_EQ(posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(fds[1]);
    err_ = fdopen(fds[0], "r");
  }
  ~Process() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      Wait();
    }
    fclose(err_);
  }

  // The next line of output with `part` in it; "" at its end.
  std::string ReadUntil(const std::string& part) {
    char line[4096];
    while (fgets(line, sizeof(line), err_) != nullptr) {
      if (std::string(line).find(part) != std::string::npos) return line;
    }
    return "";
  }
  void Signal(int signal) { kill(pid_, signal); }
  // The exit code; -1 when a signal ended it.
  int Wait() {
    int status = 0;
    CHECK_EQ(waitpid(pid_, &status, 0), pid_);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_ = 0;
  FILE* err_ = nullptr;
};

// A router before one group whose answers never end.
class RouterProcessTest : public ::testing::Test {
 protected:
  RouterProcessTest() {
    process_.ReadUntil("\"ready\":true");
    channel_ =
        grpc::CreateChannel(absl::StrCat("127.0.0.1:", port_), grpc::InsecureChannelCredentials());
    stub_ = v1::GenerationService::NewStub(channel_);
  }

  static FakeScript Endless() {
    FakeScript script;
    script.tokens = bough::testing::TinyText("abc");
    script.hold_end = true;
    return script;
  }

  // Opens a stream and reads its first message.
  std::unique_ptr<Stream> Open(grpc::ClientContext* context) {
    v1::GenerateStreamRequest request;
    request.mutable_request()->set_text("x");
    std::unique_ptr<Stream> stream = stub_->GenerateStream(context, request);
    v1::GenerateStreamResponse first;
    EXPECT_TRUE(stream->Read(&first));
    return stream;
  }

  // A port that was free a moment ago.
  static int FreePort() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    grpc::AsyncGenericService service;
    auto queue = builder.AddCompletionQueue();
    builder.RegisterAsyncGenericService(&service);
    auto server = builder.BuildAndStart();
    server->Shutdown();
    queue->Shutdown();
    void* tag;
    bool ok;
    while (queue->Next(&tag, &ok)) {
    }
    return port;
  }

  FakeGroup group_{"a", Endless()};
  const int port_ = FreePort();
  Process process_{{"--model=" + bough::testing::WriteTinyModelFolder(),
                    "--groups=a=" + group_.address(), absl::StrCat("--listen=127.0.0.1:", port_),
                    "--admin-listen=127.0.0.1:0", "--metrics-listen="}};
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::GenerationService::Stub> stub_;
};

TEST_F(RouterProcessTest, SigtermRefusesNewRequestsLetsStreamsEndAndExitsWithZero) {
  grpc::ClientContext context;
  auto stream = Open(&context);
  process_.Signal(SIGTERM);
  ASSERT_NE(process_.ReadUntil("draining"), "");
  v1::GenerateRequest request;
  request.set_text("x");
  v1::GenerateResponse response;
  grpc::ClientContext late;
  const grpc::Status status = stub_->Generate(&late, request, &response);
  EXPECT_EQ(FromDetails(status).value_or(ApiError{}).reason, "DRAINING");
  context.TryCancel();  // the last stream ends
  EXPECT_EQ(process_.Wait(), 0);
}

TEST_F(RouterProcessTest, ASecondSignalEndsStreamsAtOnce) {
  grpc::ClientContext context;
  auto stream = Open(&context);
  process_.Signal(SIGTERM);
  ASSERT_NE(process_.ReadUntil("draining"), "");
  process_.Signal(SIGINT);
  v1::GenerateStreamResponse event;
  while (stream->Read(&event)) {
  }
  EXPECT_FALSE(stream->Finish().ok());
  EXPECT_EQ(process_.Wait(), 0);
}

TEST_F(RouterProcessTest, ASecondRouterOnThePortSaysSo) {
  Process second({"--model=" + bough::testing::WriteTinyModelFolder(),
                  "--groups=a=" + group_.address(), absl::StrCat("--listen=127.0.0.1:", port_),
                  "--admin-listen=127.0.0.1:0", "--metrics-listen="});
  EXPECT_THAT(second.ReadUntil("bough-router:"), HasSubstr("--listen: cannot bind"));
  EXPECT_EQ(second.Wait(), 1);
}

TEST(RouterProcess, AnUnknownFlagIsSaidInOneLineAndEndsIt) {
  Process process({"--modl=/no/such"});
  EXPECT_THAT(process.ReadUntil("bough-router:"), HasSubstr("--modl: no such flag; see --help"));
  EXPECT_EQ(process.Wait(), 1);
}

TEST(RouterProcess, HelpNamesFlagsAndDefaultsAndEndsWell) {
  Process process({"--help"});
  EXPECT_THAT(process.ReadUntil("--metrics-listen"), HasSubstr("127.0.0.1:9090"));
  EXPECT_EQ(process.Wait(), 0);
}

TEST(RouterProcess, BadFlagsAreSaidAndEndIt) {
  Process process({"--model=/no/such", "--groups=a"});
  EXPECT_THAT(process.ReadUntil("bough-router:"), HasSubstr("\"a\" is not name=host:port"));
  EXPECT_EQ(process.Wait(), 1);
}

}  // namespace
}  // namespace bough::router
