#include "common/grpc_status.h"

#include <gtest/gtest.h>

#include "google/rpc/error_details.pb.h"

namespace bough {
namespace {

TEST(GrpcStatus, DetailsSurviveTheTrip) {
  ApiError error;
  error.code = absl::StatusCode::kResourceExhausted;
  error.message = "the queue is full: limit 8, waiting 8";
  error.reason = "QUEUE_FULL";
  error.metadata = {{"stage", "queue"}, {"group", "g0"}};
  error.violations = {{"stop.max_tokens", "must be in [1, 9], is 10"}};
  error.retry_after = absl::Milliseconds(1500);
  error.resource_type = "model";
  error.resource_name = "demo";

  const grpc::Status status = ToGrpcStatus(error);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(), error.message);

  const std::optional<ApiError> back = FromDetails(status);
  ASSERT_TRUE(back.has_value());
  EXPECT_EQ(back->code, error.code);
  EXPECT_EQ(back->message, error.message);
  EXPECT_EQ(back->reason, error.reason);
  EXPECT_EQ(back->metadata, error.metadata);
  ASSERT_EQ(back->violations.size(), 1u);
  EXPECT_EQ(back->violations[0].field, "stop.max_tokens");
  EXPECT_EQ(back->violations[0].description, "must be in [1, 9], is 10");
  EXPECT_EQ(back->retry_after, absl::Milliseconds(1500));
  EXPECT_EQ(back->resource_type, "model");
  EXPECT_EQ(back->resource_name, "demo");
}

TEST(GrpcStatus, UnsetDetailsStayUnset) {
  ApiError error;
  error.code = absl::StatusCode::kUnavailable;
  error.reason = "DRAINING";
  const std::optional<ApiError> back = FromDetails(ToGrpcStatus(error));
  ASSERT_TRUE(back.has_value());
  EXPECT_TRUE(back->violations.empty());
  EXPECT_FALSE(back->retry_after.has_value());
  EXPECT_EQ(back->resource_type, "");
}

// What other languages' grpc-status libraries look for.
TEST(GrpcStatus, DetailsArePackedUnderTheirPublicTypeUrls) {
  google::rpc::Status proto;
  const grpc::Status status =
      ToGrpcStatus(InvalidRequest({{"sampling.n", "must be in [1, 4], is 0"}}));
  ASSERT_TRUE(proto.ParseFromString(status.error_details()));
  EXPECT_EQ(proto.code(), 3);
  ASSERT_EQ(proto.details_size(), 2);
  EXPECT_EQ(proto.details(0).type_url(), "type.googleapis.com/google.rpc.ErrorInfo");
  EXPECT_EQ(proto.details(1).type_url(), "type.googleapis.com/google.rpc.BadRequest");
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(proto.details(0).UnpackTo(&info));
  EXPECT_EQ(info.domain(), "bough");
}

TEST(GrpcStatus, InvalidRequestRepeatsTheFirstViolation) {
  const ApiError error = InvalidRequest({{"sampling.n", "must be in [1, 4], is 0"}, {"b", "c"}});
  EXPECT_EQ(error.code, absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(error.message, "sampling.n: must be in [1, 4], is 0");
  EXPECT_EQ(error.violations.size(), 2u);
}

TEST(GrpcStatus, AbslStatusKeepsCodeAndMessageBothWays) {
  const absl::Status status = absl::NotFoundError("no model \"x\"");
  EXPECT_EQ(FromGrpcStatus(ToGrpcStatus(status)), status);
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  EXPECT_TRUE(FromGrpcStatus(grpc::Status::OK).ok());
}

TEST(GrpcStatus, AStatusWithoutDetailsHasNone) {
  EXPECT_FALSE(FromDetails(grpc::Status(grpc::StatusCode::INTERNAL, "x")).has_value());
  EXPECT_FALSE(FromDetails(grpc::Status(grpc::StatusCode::INTERNAL, "x", "\xff garbage")));
}

TEST(GrpcStatus, HugeErrorsFitTheTrailers) {
  std::vector<FieldViolation> violations(1000, {"sampling.logit_bias[1]", std::string(5000, 'x')});
  const grpc::Status status = ToGrpcStatus(InvalidRequest(violations));
  EXPECT_LE(status.error_message().size(), 1100u);
  EXPECT_LE(status.error_details().size(), 6000u);  // of 8192, base64 apart
  EXPECT_GE(FromDetails(status)->violations.size(), 3u);
}

TEST(GrpcStatus, AMessageIsNeverCutInsideACharacter) {
  ApiError error;
  error.code = absl::StatusCode::kInvalidArgument;
  error.message = "a";
  for (int i = 0; i < 1000; ++i) error.message += "\u00e9";  // two bytes each
  const std::string cut = ToGrpcStatus(error).error_message();
  EXPECT_EQ(cut.substr(cut.size() - 5), "\u00e9...");
}

}  // namespace
}  // namespace bough
