// What a client gets: answers, cancels, deadlines, and its groups' deaths that it does not notice.

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/router/server_fixture.h"

namespace bough::router {
namespace {

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
  EXPECT_EQ(out.start.route(0).terms_size(), 6);
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

}  // namespace
}  // namespace bough::router
