// What operators and their tools see: health, reflection, admin, metrics.

#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/router/server_fixture.h"

namespace bough::router {
namespace {

using ::testing::HasSubstr;

class OperationsTest : public ServerTest {};

TEST_F(OperationsTest, HealthFollowsTheGroupsAndDraining) {
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

TEST_F(OperationsTest, ReflectionListsTheServicesOfEachPort) {
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

TEST_F(OperationsTest, OperatorsSeeGroupsCancelRequestsAndExplainRoutes) {
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

TEST_F(OperationsTest, WithoutAGroupItSaysSoAndWhenToComeBack) {
  FakeGroup& group = AddGroup("a", Says("x"));
  Start();
  group.Kill();
  ASSERT_TRUE(Eventually([this] { return !router_->IsServing(); }));
  const StreamResult out = Stream(Ask());
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(out.error.reason, "NO_GROUP");
  EXPECT_TRUE(out.error.retry_after.has_value());
}

TEST_F(OperationsTest, EveryMetricExistsBeforeItsFirstEventAndCountsCalls) {
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
