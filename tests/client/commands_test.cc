// Commands against a server in this process: what they send, print and return.
#include "client/commands.h"

#include <atomic>
#include <fstream>
#include <future>
#include <sstream>
#include <thread>

#include "bough/v1/admin.grpc.pb.h"
#include "bough/v1/generation.grpc.pb.h"
#include "bough/v1/model.grpc.pb.h"
#include "common/grpc_status.h"
#include "gmock/gmock.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace bough::client {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// Answers every request with "<prompt> word word ..." per choice, or with `failure`.
class ScriptedGeneration final : public v1::GenerationService::Service {
 public:
  grpc::Status Generate(grpc::ServerContext*, const v1::GenerateRequest* request,
                        v1::GenerateResponse* response) override {
    last = *request;
    ++unary_calls;
    for (int i = 0; i < request->sampling().n(); ++i) {
      response->add_choices()->set_index(i);
      response->mutable_choices(i)->set_text("best");
    }
    response->set_group("g0");
    return failure;
  }

  grpc::Status GenerateStream(grpc::ServerContext* context,
                              const v1::GenerateStreamRequest* stream_request,
                              grpc::ServerWriter<v1::GenerateStreamResponse>* writer) override {
    const v1::GenerateRequest& request = stream_request->request();
    {
      std::lock_guard lock(mutex);
      last = request;
    }
    if (!failure.ok()) return failure;
    v1::GenerateStreamResponse event;
    event.mutable_start()->set_group("g0");
    event.mutable_start()->set_request_id("r1");
    writer->Write(event);
    const int n = std::max(1, request.sampling().n());
    const int tokens = std::max(2, request.stop().max_tokens());
    for (int t = 0; t < tokens; ++t) {
      for (int i = 0; i < n; ++i) {
        event.mutable_delta()->set_index(i);
        event.mutable_delta()->set_text(t == 0 ? "word" : " word");
        event.mutable_delta()->clear_token_ids();
        event.mutable_delta()->add_token_ids(7);
        writer->Write(event);
      }
    }
    if (hang) {
      started.set_value();
      while (!context->IsCancelled()) std::this_thread::yield();
      cancelled = true;
      return grpc::Status(grpc::StatusCode::CANCELLED, "client gone");
    }
    for (int i = 0; i < n; ++i) {
      event.mutable_finish()->set_index(i);
      event.mutable_finish()->set_finish_reason(v1::FINISH_REASON_LENGTH);
      writer->Write(event);
    }
    event.mutable_end()->mutable_usage()->set_prompt_tokens(10);
    event.mutable_end()->mutable_usage()->set_cached_prompt_tokens(5);
    event.mutable_end()->mutable_usage()->set_completion_tokens(tokens * n);
    event.mutable_end()->mutable_timings()->set_e2e_seconds(1);
    writer->Write(event);
    return grpc::Status::OK;
  }

  std::mutex mutex;
  v1::GenerateRequest last;
  grpc::Status failure;
  std::atomic<int> unary_calls = 0;
  bool hang = false;
  std::promise<void> started;
  std::atomic<bool> cancelled = false;
};

class ScriptedModel final : public v1::ModelService::Service {
  grpc::Status GetModel(grpc::ServerContext*, const v1::GetModelRequest*,
                        v1::GetModelResponse* response) override {
    response->mutable_model()->set_name("demo");
    response->mutable_model()->set_vocab_size(1000);
    response->mutable_model()->set_max_model_len(1024);
    response->mutable_model()->set_max_n(64);
    response->mutable_model()->set_bos_token_id(1);
    response->mutable_model()->set_eos_token_id(2);
    return grpc::Status::OK;
  }
};

class ScriptedAdmin final : public v1::AdminService::Service {
  grpc::Status GetServerInfo(grpc::ServerContext*, const v1::GetServerInfoRequest*,
                             v1::GetServerInfoResponse* response) override {
    response->set_model("demo");
    response->set_ready_groups(1);
    return grpc::Status::OK;
  }
  grpc::Status ListGroups(grpc::ServerContext*, const v1::ListGroupsRequest*,
                          v1::ListGroupsResponse* response) override {
    response->add_groups()->set_name("g0");
    response->mutable_groups(0)->set_state(v1::GROUP_STATE_READY);
    response->mutable_groups(0)->set_device("cpu");
    return grpc::Status::OK;
  }
  grpc::Status GetLoadProgress(grpc::ServerContext*, const v1::GetLoadProgressRequest*,
                               v1::GetLoadProgressResponse*) override {
    return grpc::Status::OK;
  }
  grpc::Status ExplainRoute(grpc::ServerContext*, const v1::ExplainRouteRequest* request,
                            v1::ExplainRouteResponse* response) override {
    response->set_prompt_tokens(static_cast<int>(request->request().text().size()));
    response->add_candidates()->set_group("g0");
    response->mutable_candidates(0)->set_chosen(true);
    return grpc::Status::OK;
  }
};

class CommandsTest : public ::testing::Test {
 protected:
  CommandsTest() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&generation_);
    builder.RegisterService(&model_);
    builder.RegisterService(&admin_);
    server_ = builder.BuildAndStart();
    address_ = "127.0.0.1:" + std::to_string(port);
  }
  ~CommandsTest() override { server_->Shutdown(); }

  int Run(Args args, const std::string& input = "") {
    if (args.size() > 0 && args[0] != "help") {
      args.push_back("--server=" + address_);
      args.push_back("--admin=" + address_);
    }
    std::istringstream in(input);
    std::ostringstream out, err;
    Io io{in, out, err, false, false, false, interrupt_};
    const int code = RunCommand(args, io);
    out_ = out.str();
    err_ = err.str();
    return code;
  }

  ScriptedGeneration generation_;
  ScriptedModel model_;
  ScriptedAdmin admin_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_, out_, err_;
  Interrupt interrupt_;
};

TEST_F(CommandsTest, HelpListsEveryCommand) {
  EXPECT_EQ(Run({"help"}), kExitOk);
  const std::string help = out_;
  for (const char* name : {"generate", "chat", "bench", "top", "route"}) {
    EXPECT_THAT(help, HasSubstr(name));
    EXPECT_EQ(Run({name, "--help"}), kExitOk) << name;
    EXPECT_THAT(out_, StartsWith("usage: bough " + std::string(name) + " [flags]"));
  }
}

TEST_F(CommandsTest, AnUnknownCommandNamesTheNearest) {
  EXPECT_EQ(Run({"generat"}), kExitUsage);
  EXPECT_EQ(err_, "error: unknown command 'generat'; did you mean 'generate'?\n");
}

TEST_F(CommandsTest, AnUnknownFlagIsOneLineAndExitTwo) {
  for (const char* name : {"generate", "chat", "bench", "top", "route"}) {
    EXPECT_EQ(Run({name, "--servr=x"}), kExitUsage) << name;
    EXPECT_THAT(err_, EndsWith("did you mean --server?\n")) << name;
  }
}

TEST_F(CommandsTest, GenerateStreamsTextAndEndsWithFigures) {
  EXPECT_EQ(Run({"generate", "Hello", "--max-tokens=3"}), kExitOk);
  EXPECT_EQ(out_, "word word word\n");
  EXPECT_EQ(err_,
            "group=g0 prompt_tokens=10 cached_tokens=5 completion_tokens=3 shared_blocks=0 "
            "ttft_ms=0.0 tokens_per_s=3.0\n");
  EXPECT_EQ(generation_.last.text(), "Hello");
}

TEST_F(CommandsTest, GenerateReadsStdin) {
  EXPECT_EQ(Run({"generate"}, "from stdin\n"), kExitOk);
  EXPECT_EQ(generation_.last.text(), "from stdin");
}

TEST_F(CommandsTest, GeneratePrintsChoicesOneAfterAnother) {
  EXPECT_EQ(Run({"generate", "x", "--n=2", "--max-tokens=2"}), kExitOk);
  EXPECT_EQ(out_, "[choice 0]\nword word\n[choice 1]\nword word\n");
}

TEST_F(CommandsTest, GenerateJsonIsOneObject) {
  EXPECT_EQ(Run({"generate", "x", "--json", "--n=2"}), kExitOk);
  const auto json = nlohmann::json::parse(out_);
  EXPECT_EQ(json["choices"].size(), 2u);
  EXPECT_EQ(json["choices"][1]["text"], "word word");
  EXPECT_EQ(json["group"], "g0");
}

TEST_F(CommandsTest, GenerateIsUnaryWhenMoreAreDrawnThanReturned) {
  EXPECT_EQ(Run({"generate", "x", "--n=1", "--best-of=4"}), kExitOk);
  EXPECT_EQ(generation_.unary_calls, 1);
  EXPECT_EQ(out_, "best\n");
}

TEST_F(CommandsTest, AnErrorIsOneLineWithViolationsAndExitOne) {
  generation_.failure =
      ToGrpcStatus(InvalidRequest({{"sampling.n", "must be in [1, 1024], is 0"},
                                   {"sampling.top_p", "must be in (0, 1], is 2"}}));
  EXPECT_EQ(Run({"generate", "x"}), kExitError);
  EXPECT_EQ(out_, "");
  EXPECT_THAT(err_, StartsWith("error: INVALID_ARGUMENT: "));
  EXPECT_THAT(err_, HasSubstr("sampling.n: must be in [1, 1024], is 0"));
  EXPECT_THAT(err_, HasSubstr("sampling.top_p: must be in (0, 1], is 2"));
  EXPECT_EQ(std::count(err_.begin(), err_.end(), '\n'), 1);
}

TEST_F(CommandsTest, AnErrorSaysWhenToComeBack) {
  ApiError full;
  full.code = absl::StatusCode::kResourceExhausted;
  full.message = "queue is full";
  full.reason = "QUEUE_FULL";
  full.retry_after = absl::Milliseconds(1500);
  generation_.failure = ToGrpcStatus(full);
  EXPECT_EQ(Run({"generate", "x"}), kExitError);
  EXPECT_EQ(err_, "error: RESOURCE_EXHAUSTED: queue is full reason=QUEUE_FULL retry_after=1.5s\n");
}

TEST_F(CommandsTest, AnUnreachableServerIsOneLineAndExitOne) {
  server_->Shutdown();
  EXPECT_EQ(Run({"generate", "x", "--timeout=5s"}), kExitError);
  EXPECT_THAT(err_, StartsWith("error: UNAVAILABLE: "));
}

TEST_F(CommandsTest, AnInterruptCancelsTheCallAndExitsWith130) {
  generation_.hang = true;
  std::thread press([this] {
    generation_.started.get_future().wait();
    EXPECT_TRUE(interrupt_.Raise());
  });
  EXPECT_EQ(Run({"generate", "x"}), kExitInterrupt);
  press.join();
  server_->Shutdown();  // waits for the handler
  EXPECT_TRUE(generation_.cancelled);
  EXPECT_THAT(err_, EndsWith("cancelled\n"));
}

TEST_F(CommandsTest, ATimeoutIsADeadline) {
  generation_.hang = true;
  EXPECT_EQ(Run({"generate", "x", "--timeout=200ms"}), kExitError);
  EXPECT_THAT(err_, StartsWith("error: DEADLINE_EXCEEDED"));
}

TEST_F(CommandsTest, ChatSendsTheWholeConversationEachTurn) {
  EXPECT_EQ(Run({"chat", "--system=Be brief."}, "Hi\nMore?\n"), kExitOk);
  const auto& messages = generation_.last.chat().messages();
  ASSERT_EQ(messages.size(), 4);
  EXPECT_EQ(messages[0].role(), v1::ROLE_SYSTEM);
  EXPECT_EQ(messages[1].content(), "Hi");
  EXPECT_EQ(messages[2].role(), v1::ROLE_ASSISTANT);
  EXPECT_EQ(messages[2].content(), "word word");
  EXPECT_EQ(messages[3].content(), "More?");
  EXPECT_EQ(out_, "word word\nword word\n");
  EXPECT_THAT(err_, HasSubstr("cached_tokens=5"));
}

TEST_F(CommandsTest, ChatForgetsOnReset) {
  EXPECT_EQ(Run({"chat"}, "Hi\n/reset\nNew\n/quit\nnever\n"), kExitOk);
  ASSERT_EQ(generation_.last.chat().messages_size(), 1);
  EXPECT_EQ(generation_.last.chat().messages(0).content(), "New");
}

TEST_F(CommandsTest, ChatFromAPipeEndsAtAnError) {
  generation_.failure = grpc::Status(grpc::StatusCode::UNAVAILABLE, "no group is ready");
  EXPECT_EQ(Run({"chat"}, "Hi\nMore\n"), kExitError);
  EXPECT_EQ(err_, "error: UNAVAILABLE: no group is ready\n");
}

TEST_F(CommandsTest, BenchReportsEveryRequest) {
  const std::string out = ::testing::TempDir() + "/bench.json";
  EXPECT_EQ(Run({"bench", "--num-requests=40", "--concurrency=8", "--input-len=16",
                 "--output-len=4", "--out=" + out, "--scenario=smoke"}),
            kExitOk)
      << err_;
  EXPECT_THAT(out_, HasSubstr("40 ok, 0 failed"));
  EXPECT_THAT(err_, HasSubstr("40/40"));
  std::ifstream file(out);
  const auto json = nlohmann::json::parse(file);
  EXPECT_EQ(json["completed"], 40);
  EXPECT_EQ(json["total_output_tokens"], 160);
  EXPECT_EQ(json["cached_token_ratio"], 0.5);
  EXPECT_EQ(json["device"], "cpu");
}

TEST_F(CommandsTest, BenchServesHundredsOfStreamsAtOnce) {
  EXPECT_EQ(
      Run({"bench", "--num-requests=300", "--concurrency=256", "--input-len=16", "--output-len=4"}),
      kExitOk);
  EXPECT_THAT(out_, HasSubstr("300 ok, 0 failed"));
}

TEST_F(CommandsTest, BenchFollowsAnOpenLoop) {
  EXPECT_EQ(
      Run({"bench", "--num-requests=20", "--request-rate=200", "--input-len=16", "--output-len=4"}),
      kExitOk);
  EXPECT_THAT(out_, HasSubstr("20 ok, 0 failed"));
}

TEST_F(CommandsTest, BenchCountsErrorsByCodeAndFailsWhenNothingWorked) {
  generation_.failure = grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
  EXPECT_EQ(Run({"bench", "--num-requests=5", "--input-len=16", "--output-len=4"}), kExitError);
  EXPECT_THAT(out_, HasSubstr("errors      5 RESOURCE_EXHAUSTED"));
}

TEST_F(CommandsTest, BenchRefusesLengthsThatTheModelCannotServe) {
  EXPECT_EQ(Run({"bench", "--input-len=1024"}), kExitUsage);
  EXPECT_THAT(err_, HasSubstr("must fit the context of 1024 tokens"));
}

TEST_F(CommandsTest, BenchEndsOnInterruptWithWhatItHas) {
  generation_.hang = true;
  std::thread press([this] {
    generation_.started.get_future().wait();
    EXPECT_TRUE(interrupt_.Raise());
  });
  EXPECT_EQ(Run({"bench", "--num-requests=5", "--concurrency=1", "--input-len=16"}),
            kExitInterrupt);
  press.join();
  EXPECT_THAT(out_, HasSubstr("errors      1 CANCELLED"));
}

TEST_F(CommandsTest, TopOnceShowsAFrame) {
  EXPECT_EQ(Run({"top", "--once", "--interval=10ms"}), kExitOk);
  EXPECT_THAT(out_, HasSubstr("1/1 groups ready"));
  EXPECT_THAT(out_, HasSubstr("\ng0    ready"));
}

TEST_F(CommandsTest, TopWaitsUntilGroupsAreReady) {
  EXPECT_EQ(Run({"top", "--until-ready"}), kExitOk);
  EXPECT_EQ(err_, "1/1 groups ready\n");
}

TEST_F(CommandsTest, TopNeedsATerminal) {
  EXPECT_EQ(Run({"top"}), kExitUsage);
  EXPECT_THAT(err_, HasSubstr("needs a terminal"));
}

TEST_F(CommandsTest, RoutePrintsTheTable) {
  EXPECT_EQ(Run({"route", "Hello"}), kExitOk);
  EXPECT_THAT(out_, StartsWith("prompt_tokens=5\nms  group"));
  EXPECT_THAT(out_, HasSubstr("\n *  g0"));
}

}  // namespace
}  // namespace bough::client
