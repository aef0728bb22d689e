// The router as clients see it: real gRPC on both sides, groups scripted.

#include "router/server.h"

#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "common/grpc_status.h"
#include "gmock/gmock.h"
#include "grpcpp/impl/codegen/client_unary_call.h"
#include "grpcpp/impl/codegen/rpc_method.h"
#include "gtest/gtest.h"
#include "router/clock.h"
#include "tests/testing/fake_group.h"
#include "tests/testing/tiny_tokenizer.h"

namespace bough::router {
namespace {

using ::bough::testing::FakeGroup;
using ::bough::testing::FakeScript;
using ::bough::testing::TinyText;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using v1::GenerateRequest;

// Waits for what another thread is about to do.
template <typename Condition>
bool Eventually(Condition condition) {
  const absl::Time end = MonotonicNow() + absl::Seconds(20);
  while (!condition()) {
    if (MonotonicNow() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

FakeScript Says(const std::string& text) {
  FakeScript script;
  script.tokens = TinyText(text);
  script.tokens.push_back(2);  // EOS
  return script;
}

struct StreamResult {
  grpc::Status status;
  std::string text;  // of choice 0
  v1::StreamStart start;
  std::vector<v1::StreamFinish> finishes;
  v1::StreamEnd end;
  ApiError error;
};

class ServerTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { tokenizer_ = bough::testing::LoadTinyTokenizer().release(); }

  FakeGroup& AddGroup(const std::string& name, FakeScript script) {
    groups_.push_back(std::make_unique<FakeGroup>(name, std::move(script)));
    config_.groups.push_back({name, groups_.back()->address()});
    return *groups_.back();
  }

  // Starts the router and waits until it serves.
  void Start() {
    config_.listen = config_.admin_listen = "127.0.0.1:0";
    config_.served_model_name = "tiny";
    metrics_ = std::make_unique<RouterMetrics>(&registry_, config_.groups);
    router_ = std::make_unique<Router>(config_, tokenizer_, metrics_.get());
    auto server = Server::Start(router_.get());
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    public_ = Channel(server_->public_port());
    admin_channel_ = Channel(server_->admin_port());
    generation_ = v1::GenerationService::NewStub(public_);
    admin_ = v1::AdminService::NewStub(admin_channel_);
    ASSERT_TRUE(Eventually([this] {
      int ready = 0;
      router_->Inspect([&](const Dispatcher& d) { ready = d.groups().num_ready(); });
      return ready == static_cast<int>(groups_.size());
    }));
  }

  static std::shared_ptr<grpc::Channel> Channel(int port) {
    grpc::ChannelArguments args;
    args.SetMaxSendMessageSize(-1);
    args.SetInt("grpc.http2.bdp_probe", 0);  // a reader that is slow stays slow
    args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(port),
                                     grpc::InsecureChannelCredentials(), args);
  }

  static GenerateRequest Ask(const std::string& text = "hello") {
    GenerateRequest request;
    request.set_text(text);
    return request;
  }

  grpc::Status Generate(const GenerateRequest& request, v1::GenerateResponse* response) {
    grpc::ClientContext context;
    return generation_->Generate(&context, request, response);
  }

  StreamResult Stream(const GenerateRequest& request, absl::Duration timeout = absl::Seconds(30)) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));
    v1::GenerateStreamRequest message;
    *message.mutable_request() = request;
    auto reader = generation_->GenerateStream(&context, message);
    StreamResult out;
    v1::GenerateStreamResponse event;
    while (reader->Read(&event)) {
      if (event.has_start()) out.start = event.start();
      if (event.has_delta() && event.delta().index() == 0) out.text += event.delta().text();
      if (event.has_finish()) out.finishes.push_back(event.finish());
      if (event.has_end()) out.end = event.end();
    }
    out.status = reader->Finish();
    out.error = FromDetails(out.status).value_or(ApiError{});
    return out;
  }

  // Any unary method by bytes, for services whose proto is not ours.
  static std::string Raw(const std::shared_ptr<grpc::Channel>& channel, const char* method,
                         const std::string& request, grpc::Status* status) {
    grpc::ClientContext context;
    const grpc::Slice slice(request);
    grpc::ByteBuffer in(&slice, 1), out;
    *status = grpc::internal::BlockingUnaryCall(
        channel.get(), grpc::internal::RpcMethod(method, grpc::internal::RpcMethod::NORMAL_RPC),
        &context, in, &out);
    return Text(out);
  }

  static std::string Text(const grpc::ByteBuffer& bytes) {
    std::vector<grpc::Slice> slices;
    std::string text;
    if (!bytes.Dump(&slices).ok()) return text;
    for (const grpc::Slice& slice : slices) {
      text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    }
    return text;
  }

  // 1 = SERVING, 2 = NOT_SERVING.
  static int Health(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
    grpc::Status status;
    std::string request;
    if (!service.empty()) request = std::string{0x0a, static_cast<char>(service.size())} + service;
    const std::string reply = Raw(channel, "/grpc.health.v1.Health/Check", request, &status);
    return status.ok() && reply.size() == 2 ? reply[1] : -1;
  }

  static Tokenizer* tokenizer_;
  RouterConfig config_;
  Metrics registry_;
  std::vector<std::unique_ptr<FakeGroup>> groups_;
  std::unique_ptr<RouterMetrics> metrics_;
  std::unique_ptr<Router> router_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> public_, admin_channel_;
  std::unique_ptr<v1::GenerationService::Stub> generation_;
  std::unique_ptr<v1::AdminService::Stub> admin_;
};

Tokenizer* ServerTest::tokenizer_ = nullptr;

TEST_F(ServerTest, StreamsTextUsageAndTimings) {
  FakeScript script = Says("hi there");
  script.cached_tokens = 3;
  script.shared_blocks = 1;
  AddGroup("a", script);
  Start();
  GenerateRequest request = Ask();
  request.set_request_id("r-1");
  request.mutable_output()->set_return_prompt(true);
  request.mutable_output()->set_explain_route(true);
  const StreamResult out = Stream(request);
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_EQ(out.text, "hi there");
  EXPECT_EQ(out.start.request_id(), "r-1");
  EXPECT_EQ(out.start.model(), "tiny");
  EXPECT_EQ(out.start.group(), "a");
  EXPECT_EQ(out.start.cached_prompt_tokens(), 3);
  EXPECT_EQ(out.start.prompt_token_ids_size(), out.start.prompt_tokens());
  ASSERT_EQ(out.start.route_size(), 1);
  EXPECT_TRUE(out.start.route(0).chosen());
  EXPECT_EQ(out.start.route(0).terms_size(), 5);
  ASSERT_EQ(out.finishes.size(), 1u);
  EXPECT_EQ(out.finishes[0].finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(out.end.usage().completion_tokens(), 9);
  EXPECT_EQ(out.end.usage().shared_kv_blocks(), 1);
  EXPECT_GT(out.end.timings().e2e_seconds(), 0);
  EXPECT_GE(out.end.timings().e2e_seconds(), out.end.timings().ttft_seconds());
}

TEST_F(ServerTest, AnswersUnaryWithTheBestOfManyByMeanLogprob) {
  FakeScript script = Says("ok");
  script.logprob_step = 0.1f;  // choice 3 is the most probable
  FakeGroup& group = AddGroup("a", script);
  Start();
  GenerateRequest request = Ask();
  request.mutable_sampling()->set_n(2);
  request.mutable_sampling()->set_best_of(4);
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(request, &response).ok());
  ASSERT_EQ(response.choices_size(), 2);
  EXPECT_EQ(response.choices(0).text(), "ok");
  EXPECT_NEAR(response.choices(0).mean_logprob(), -0.7, 1e-6);
  EXPECT_NEAR(response.choices(1).mean_logprob(), -0.8, 1e-6);
  EXPECT_EQ(response.choices(0).logprobs_size(), 0);
  EXPECT_EQ(response.usage().completion_tokens(), 4 * 3);
  EXPECT_EQ(group.submits()[0].choices_size(), 4);
}

TEST_F(ServerTest, StopsAtAStopStringAndCancelsTheChoiceAtTheGroup) {
  FakeGroup& group = AddGroup("a", Says("one. two. three."));
  Start();
  GenerateRequest request = Ask();
  request.mutable_stop()->add_stop_strings(". t");
  const StreamResult out = Stream(request);
  ASSERT_TRUE(out.status.ok());
  EXPECT_EQ(out.text, "one");
  EXPECT_EQ(out.finishes[0].stop_string(), ". t");
  ASSERT_TRUE(group.WaitForCancels(1));
  EXPECT_EQ(group.cancels()[0].choice(), 0);
}

TEST_F(ServerTest, EchoesTheRequestIdAndCarriesTheTraceToTheGroup) {
  FakeGroup& group = AddGroup("a", Says("x"));
  Start();
  grpc::ClientContext context;
  context.AddMetadata("x-request-id", "from-metadata");
  context.AddMetadata("traceparent", "00-aa-bb-01");
  v1::GenerateResponse response;
  ASSERT_TRUE(generation_->Generate(&context, Ask(), &response).ok());
  EXPECT_EQ(response.request_id(), "from-metadata");
  const auto& metadata = context.GetServerInitialMetadata();
  const auto id = metadata.find("x-request-id");
  ASSERT_NE(id, metadata.end());
  EXPECT_EQ(std::string(id->second.data(), id->second.size()), "from-metadata");
  EXPECT_EQ(group.submits()[0].request_id(), "from-metadata");
  EXPECT_EQ(group.submits()[0].traceparent(), "00-aa-bb-01");
}

struct BadRequestCase {
  const char* name;
  const char* field;
  const char* part;  // of the description: limit and value
  void (*change)(GenerateRequest&);
};

const BadRequestCase kBadRequests[] = {
    {"empty prompt", "text", "must not be empty", [](GenerateRequest& m) { m.set_text(""); }},
    {"token id out of range", "token_ids.ids[0]", "[0, 399], is 32000",
     [](GenerateRequest& m) { m.mutable_token_ids()->add_ids(32000); }},
    {"n = 0", "sampling.n", "[1, 1024], is 0",
     [](GenerateRequest& m) { m.mutable_sampling()->set_n(0); }},
    {"n = 2^31-1", "sampling.n", "[1, 1024], is 2147483647",
     [](GenerateRequest& m) { m.mutable_sampling()->set_n(2147483647); }},
    {"NaN temperature", "sampling.temperature", "[0, 100], is nan",
     [](GenerateRequest& m) {
       m.mutable_sampling()->set_temperature(std::numeric_limits<float>::quiet_NaN());
     }},
    {"prompt longer than the context", "prompt", "at most 32767 tokens, has 40000",
     [](GenerateRequest& m) {
       for (int i = 0; i < 40000; ++i) m.mutable_token_ids()->add_ids(5);
     }},
    {"10 MB prompt", "GenerateRequest", "at most 4194304 bytes, is ",
     [](GenerateRequest& m) { m.set_text(std::string(10 << 20, 'x')); }},
    {"EOS ignored and asked for", "stop.ignore_eos", "EOS (2)",
     [](GenerateRequest& m) {
       m.mutable_stop()->set_ignore_eos(true);
       m.mutable_stop()->add_stop_token_ids(2);
     }},
    {"stop string kept but none given", "stop.include_stop_string", "stop_strings is empty",
     [](GenerateRequest& m) { m.mutable_stop()->set_include_stop_string(true); }},
    {"more tokens at least than at most", "stop.min_tokens", "[0, 5], is 6",
     [](GenerateRequest& m) {
       m.mutable_stop()->set_max_tokens(5);
       m.mutable_stop()->set_min_tokens(6);
     }},
};

TEST_F(ServerTest, RefusesBadRequestsByFieldLimitAndValueAndServesOn) {
  FakeGroup& group = AddGroup("a", Says("fine"));
  Start();
  for (const BadRequestCase& c : kBadRequests) {
    GenerateRequest request = Ask();
    c.change(request);
    v1::GenerateResponse response;
    const grpc::Status status = Generate(request, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << c.name;
    const ApiError error = FromDetails(status).value_or(ApiError{});
    ASSERT_EQ(error.violations.size(), 1u) << c.name << ": " << status.error_message();
    EXPECT_EQ(error.violations[0].field, c.field) << c.name;
    EXPECT_THAT(error.violations[0].description, HasSubstr(c.part)) << c.name;
  }
  EXPECT_TRUE(group.submits().empty());
  EXPECT_EQ(Stream(Ask()).text, "fine");
  EXPECT_EQ(group.submits().size(), 1u);
}

TEST_F(ServerTest, AnotherModelIsNotFound) {
  FakeGroup& group = AddGroup("a", Says("fine"));
  Start();
  GenerateRequest request = Ask();
  request.set_model("gpt-5");
  v1::GenerateResponse response;
  const grpc::Status status = Generate(request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(FromDetails(status)->resource_name, "gpt-5");
  EXPECT_TRUE(group.submits().empty());
  EXPECT_EQ(Stream(Ask()).text, "fine");
}

TEST_F(ServerTest, BytesThatAreNoRequestOrNoUtf8AreAnInvalidArgument) {
  FakeGroup& group = AddGroup("a", Says("fine"));
  Start();
  const std::string broken_utf8 = {0x1a, 0x02, 'a', '\xFF'};  // field 3, text
  for (const std::string& bytes : {broken_utf8, std::string("\xFF\xFF\xFF")}) {
    grpc::Status status;
    Raw(public_, "/bough.v1.GenerationService/Generate", bytes, &status);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(FromDetails(status)->violations[0].field, "GenerateRequest");
  }
  EXPECT_TRUE(group.submits().empty());
  EXPECT_EQ(Stream(Ask()).text, "fine");
}

TEST_F(ServerTest, AClientThatCancelsFreesItsRequestAtTheGroup) {
  FakeScript script = Says("abc");
  script.hold_end = true;
  FakeGroup& group = AddGroup("a", script);
  Start();
  grpc::ClientContext context;
  v1::GenerateStreamRequest message;
  *message.mutable_request() = Ask();
  auto reader = generation_->GenerateStream(&context, message);
  v1::GenerateStreamResponse event;
  ASSERT_TRUE(reader->Read(&event));
  context.TryCancel();
  ASSERT_TRUE(group.WaitForCancels(1));
  EXPECT_EQ(group.cancels()[0].choice(), -1);
  EXPECT_EQ(group.cancels()[0].handle(), group.submits()[0].handle());
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(router_->WaitUntilIdle(absl::Seconds(20)));
}

TEST_F(ServerTest, ADeadlineEndsTheRequestEverywhere) {
  FakeScript mute;
  mute.mute = true;
  FakeGroup& group = AddGroup("a", mute);
  Start();
  const StreamResult out = Stream(Ask(), absl::Milliseconds(400));
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  ASSERT_TRUE(group.WaitForCancels(1));
  EXPECT_GT(group.submits()[0].timeout_us(), 0);
  EXPECT_LE(group.submits()[0].timeout_us(), 400000);
}

TEST_F(ServerTest, AStreamSurvivesItsGroupsDeathWithoutALostOrRepeatedToken) {
  FakeScript dies = Says("the quick brown fox");
  dies.die_after = 7;
  AddGroup("a", dies);  // equal costs go to the first
  AddGroup("b", Says("the quick brown fox"));
  Start();
  const StreamResult out = Stream(Ask());
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_EQ(out.text, "the quick brown fox");
  ASSERT_EQ(groups_[0]->submits().size(), 1u);
  ASSERT_EQ(groups_[1]->submits().size(), 1u);
  const auto resumed = groups_[1]->submits()[0];
  EXPECT_EQ(resumed.attempt(), 2);
  EXPECT_EQ(resumed.choices(0).emitted_ids_size(), 7);
}

TEST_F(ServerTest, AClientThatDoesNotReadIsEndedAndItsBlocksAreFreed) {
  config_.max_pending_bytes = 16 << 10;
  FakeScript flood;
  flood.tokens.assign(20000, bough::testing::TinyChar('x'));
  flood.hold_end = true;
  FakeGroup& group = AddGroup("a", flood);
  Start();
  grpc::ClientContext context;
  v1::GenerateStreamRequest message;
  *message.mutable_request() = Ask();
  auto reader = generation_->GenerateStream(&context, message);
  ASSERT_TRUE(group.WaitForCancels(1));
  v1::GenerateStreamResponse event;
  while (reader->Read(&event)) {
  }
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(FromDetails(status)->reason, "SLOW_CONSUMER");
}

TEST_F(ServerTest, HealthFollowsTheGroupsAndDraining) {
  FakeGroup& group = AddGroup("a", Says("x"));
  Start();
  const auto health = [this] { return Health(public_, ""); };
  EXPECT_TRUE(Eventually([&] { return health() == 1; }));
  EXPECT_EQ(Health(public_, "bough.v1.GenerationService"), 1);
  EXPECT_EQ(Health(admin_channel_, ""), 1);
  grpc::ClientContext drain, undrain;
  v1::DrainResponse drained;
  v1::UndrainResponse undrained;
  ASSERT_TRUE(admin_->Drain(&drain, {}, &drained).ok());
  EXPECT_TRUE(Eventually([&] { return health() == 2; }));
  const StreamResult refused = Stream(Ask());
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(refused.error.reason, "DRAINING");
  EXPECT_TRUE(refused.error.retry_after.has_value());
  ASSERT_TRUE(admin_->Undrain(&undrain, {}, &undrained).ok());
  EXPECT_TRUE(Eventually([&] { return health() == 1; }));
  group.Kill();
  EXPECT_TRUE(Eventually([&] { return health() == 2; }));
}

TEST_F(ServerTest, ReflectionListsTheServicesOfEachPort) {
  AddGroup("a", Says("x"));
  Start();
  const auto list = [](const std::shared_ptr<grpc::Channel>& channel) {
    grpc::ClientContext context;
    const grpc::internal::RpcMethod method(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        grpc::internal::RpcMethod::BIDI_STREAMING);
    std::unique_ptr<grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>> stream(
        grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(
            channel.get(), method, &context));
    const std::string request = {0x3a, 0x01, '*'};  // list_services
    const grpc::Slice slice(request);
    grpc::ByteBuffer reply;
    EXPECT_TRUE(stream->Write(grpc::ByteBuffer(&slice, 1)));
    EXPECT_TRUE(stream->Read(&reply));
    context.TryCancel();
    return Text(reply);
  };
  const std::string of_public = list(public_), of_admin = list(admin_channel_);
  EXPECT_THAT(of_public, HasSubstr("bough.v1.GenerationService"));
  EXPECT_THAT(of_public, HasSubstr("bough.v1.ModelService"));
  EXPECT_FALSE(absl::StrContains(of_public, "bough.v1.AdminService"));
  EXPECT_THAT(of_admin, HasSubstr("bough.v1.AdminService"));
}

TEST_F(ServerTest, OperatorsSeeGroupsCancelRequestsAndExplainRoutes) {
  FakeScript script = Says("abc");
  script.hold_end = true;
  FakeGroup& group = AddGroup("a", script);
  Start();
  grpc::ClientContext list_context, explain_context, cancel_context, again_context;
  v1::ListGroupsResponse list;
  ASSERT_TRUE(admin_->ListGroups(&list_context, {}, &list).ok());
  ASSERT_EQ(list.groups_size(), 1);
  EXPECT_EQ(list.groups(0).state(), v1::GROUP_STATE_READY);
  EXPECT_EQ(list.groups(0).total_blocks(), 1000);

  v1::ExplainRouteRequest explain;
  *explain.mutable_request() = Ask();
  v1::ExplainRouteResponse explained;
  ASSERT_TRUE(admin_->ExplainRoute(&explain_context, explain, &explained).ok());
  ASSERT_EQ(explained.candidates_size(), 1);
  EXPECT_TRUE(explained.candidates(0).chosen());
  EXPECT_TRUE(group.submits().empty());

  GenerateRequest request = Ask();
  request.set_request_id("long");
  std::thread client([&] { EXPECT_EQ(Stream(request).error.reason, "CANCELLED_BY_OPERATOR"); });
  ASSERT_TRUE(group.WaitForSubmits(1));
  v1::CancelRequestRequest cancel;
  cancel.set_request_id("long");
  v1::CancelRequestResponse cancelled;
  EXPECT_TRUE(admin_->CancelRequest(&cancel_context, cancel, &cancelled).ok());
  client.join();
  EXPECT_EQ(admin_->CancelRequest(&again_context, cancel, &cancelled).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(ServerTest, WithoutAGroupItSaysSoAndWhenToComeBack) {
  FakeGroup& group = AddGroup("a", Says("x"));
  Start();
  group.Kill();
  ASSERT_TRUE(Eventually([this] { return !router_->IsServing(); }));
  const StreamResult out = Stream(Ask());
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(out.error.reason, "NO_GROUP");
  EXPECT_TRUE(out.error.retry_after.has_value());
}

TEST_F(ServerTest, TokenizeGivesTheIdsThatGenerateWouldSee) {
  FakeGroup& group = AddGroup("a", Says("x"));
  Start();
  grpc::ClientContext context;
  v1::TokenizeRequest request;
  request.set_text("hello");
  v1::TokenizeResponse response;
  ASSERT_TRUE(generation_->Tokenize(&context, request, &response).ok());
  ASSERT_TRUE(Stream(Ask("hello")).status.ok());
  const auto submit = group.submits()[0];
  EXPECT_EQ(std::vector<int32_t>(response.token_ids().begin(), response.token_ids().end()),
            std::vector<int32_t>(submit.prompt_ids().begin(), submit.prompt_ids().end()));
}

TEST_F(ServerTest, EveryMetricExistsBeforeItsFirstEventAndCountsCalls) {
  AddGroup("a", Says("abc"));
  Start();
  EXPECT_THAT(registry_.Text(), HasSubstr("bough_rejected_total{reason=\"QUEUE_FULL\"} 0"));
  ASSERT_TRUE(Stream(Ask()).status.ok());
  GenerateRequest bad = Ask();
  bad.set_text("");
  Stream(bad);
  const std::string text = registry_.Text();
  for (const char* line :
       {"bough_requests_total{code=\"OK\"} 1", "bough_requests_total{code=\"INVALID_ARGUMENT\"} 1",
        "bough_rejected_total{reason=\"INVALID_REQUEST\"} 1",
        "bough_requests_finished_total{reason=\"stop\"} 1", "bough_generated_tokens_total 4",
        "bough_time_to_first_token_seconds_count 1", "bough_inter_token_latency_seconds_count 3",
        "bough_requests_in_flight 0"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

}  // namespace
}  // namespace bough::router
