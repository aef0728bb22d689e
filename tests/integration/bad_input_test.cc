#include <cmath>
#include <limits>
#include <memory>

#include "common/grpc_status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/serving_system.h"

namespace bough::integration {
namespace {

using ::testing::HasSubstr;

class BadInput : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { system_ = std::make_unique<ServingSystem>(); }
  static void TearDownTestSuite() { system_.reset(); }

  // Refused by both calls, naming `field` and, in its description, `value`; and serving goes on.
  void ExpectRefused(const v1::GenerateRequest& request, const std::string& field,
                     const std::string& value) {
    grpc::ClientContext context;
    v1::GenerateResponse response;
    for (const grpc::Status& status : {system_->generation().Generate(&context, request, &response),
                                       system_->Stream(request).status}) {
      EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << status.error_message();
      const std::optional<ApiError> error = FromDetails(status);
      ASSERT_TRUE(error.has_value()) << status.error_message();
      ASSERT_FALSE(error->violations.empty()) << status.error_message();
      EXPECT_EQ(error->violations[0].field, field);
      EXPECT_THAT(error->violations[0].description, HasSubstr(value));
    }
    ExpectServing();
  }

  void ExpectServing() {
    const Streamed good = system_->Stream(Good());
    EXPECT_TRUE(good.status.ok()) << good.status.error_message();
    EXPECT_TRUE(system_->AllBlocksComeBack());
  }

  static v1::GenerateRequest Good() { return GreedyRequest(Prompt(10, 0), 2); }

  static std::unique_ptr<ServingSystem> system_;
};
std::unique_ptr<ServingSystem> BadInput::system_;

TEST_F(BadInput, EmptyText) {
  v1::GenerateRequest request = Good();
  request.set_text("");
  ExpectRefused(request, "text", "must not be empty");
}

TEST_F(BadInput, NoTokenIds) {
  v1::GenerateRequest request = Good();
  request.mutable_token_ids()->clear_ids();
  ExpectRefused(request, "token_ids.ids", "must not be empty");
}

TEST_F(BadInput, TokenIdBeyondTheVocabulary) {
  v1::GenerateRequest request = Good();
  const int vocab_size = system_->model().vocab_size();
  request.mutable_token_ids()->set_ids(3, vocab_size);
  ExpectRefused(request, "token_ids.ids[3]", "is " + std::to_string(vocab_size));
}

TEST_F(BadInput, NegativeTokenId) {
  v1::GenerateRequest request = Good();
  request.mutable_token_ids()->set_ids(3, -1);
  ExpectRefused(request, "token_ids.ids[3]", "is -1");
}

TEST_F(BadInput, NoSamples) {
  v1::GenerateRequest request = Good();
  request.mutable_sampling()->set_n(0);
  ExpectRefused(request, "sampling.n", "is 0");
}

TEST_F(BadInput, TwoBillionSamples) {
  v1::GenerateRequest request = Good();
  request.mutable_sampling()->set_n(std::numeric_limits<int32_t>::max());
  ExpectRefused(request, "sampling.n", "is 2147483647");
}

TEST_F(BadInput, TemperatureThatIsNoNumber) {
  v1::GenerateRequest request = Good();
  request.mutable_sampling()->set_temperature(std::nanf(""));
  ExpectRefused(request, "sampling.temperature", "is nan");
}

TEST_F(BadInput, PromptLongerThanTheContext) {
  const int context_len = system_->model().max_model_len();
  ExpectRefused(GreedyRequest(Prompt(context_len, 0), 1), "prompt",
                "has " + std::to_string(context_len));
}

TEST_F(BadInput, MoreTokensThanTheContextHasLeft) {
  v1::GenerateRequest request = Good();
  request.mutable_stop()->set_max_tokens(system_->model().max_model_len());
  ExpectRefused(request, "stop.max_tokens",
                "is " + std::to_string(system_->model().max_model_len()));
}

TEST_F(BadInput, EosAsStopTokenAndIgnored) {
  v1::GenerateRequest request = Good();
  request.mutable_stop()->add_stop_token_ids(system_->model().eos_token_id());
  ExpectRefused(request, "stop.ignore_eos", "must not be set");
}

TEST_F(BadInput, StopStringKeptThatIsNotThere) {
  v1::GenerateRequest request = Good();
  request.mutable_stop()->set_include_stop_string(true);
  ExpectRefused(request, "stop.include_stop_string", "stop_strings is empty");
}

TEST_F(BadInput, PromptOfTenMegabytes) {
  v1::GenerateRequest request = Good();
  request.set_text(std::string(10 << 20, 'a'));
  grpc::ClientContext context;
  v1::GenerateResponse response;
  const grpc::Status status = system_->generation().Generate(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << status.error_message();
  EXPECT_THAT(status.error_message(),
              HasSubstr(std::to_string(system_->model().max_request_bytes())));
  ExpectServing();
}

TEST_F(BadInput, UnknownModelIsNotFound) {
  v1::GenerateRequest request = Good();
  request.set_model("gpt-9");
  const grpc::Status status = system_->Stream(request).status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(status.error_message(), HasSubstr("model: \"gpt-9\""));
  ExpectServing();
}

}  // namespace
}  // namespace bough::integration
