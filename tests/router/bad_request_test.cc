// Requests that are no good, over the wire: refused with details, no group asked, and the server
// serves on.

#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/router/server_fixture.h"

namespace bough::router {
namespace {

using ::testing::HasSubstr;

class BadRequestTest : public ServerTest {};

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

TEST_F(BadRequestTest, RefusesBadRequestsByFieldLimitAndValueAndServesOn) {
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

TEST_F(BadRequestTest, AnotherModelIsNotFound) {
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

TEST_F(BadRequestTest, BytesThatAreNoRequestOrNoUtf8AreAnInvalidArgument) {
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

}  // namespace
}  // namespace bough::router
