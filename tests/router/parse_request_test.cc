#include "router/parse_request.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/tiny_tokenizer.h"

namespace bough::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using v1::GenerateRequest;

const Tokenizer& TinyTokenizer() {
  static const Tokenizer& tokenizer = *bough::testing::LoadTinyTokenizer().release();
  return tokenizer;
}

ServedModel Model() {
  ServedModel model;
  model.name = "tiny";
  model.limits.vocab_size = 400;
  model.limits.max_model_len = 1000;
  model.default_max_tokens = 64;
  return model;
}

std::variant<std::shared_ptr<Request>, ApiError> Parse(const GenerateRequest& m,
                                                       bool stream = false) {
  return ParseRequest(m, stream, Model(), TinyTokenizer(), "made-up", 42);
}

GenerateRequest Good() {
  GenerateRequest m;
  m.set_text("he");
  return m;
}

Request Parsed(const GenerateRequest& m) {
  auto result = Parse(m);
  if (auto* error = std::get_if<ApiError>(&result)) {
    ADD_FAILURE() << error->message;
    return {};
  }
  return *std::get<std::shared_ptr<Request>>(result);
}

TEST(ParseRequest, AnUnsetTunableTakesItsDocumentedDefault) {
  const Request r = Parsed(Good());
  EXPECT_EQ(r.id, "made-up");
  EXPECT_THAT(r.prompt_ids, ElementsAre(1, 355));  // BOS, "▁he"
  EXPECT_EQ(r.n, 1);
  EXPECT_EQ(r.best_of, 1);
  EXPECT_EQ(r.sampling.temperature, 1);
  EXPECT_EQ(r.sampling.seed, 42u);
  EXPECT_EQ(r.sampling.max_tokens, 64);
  EXPECT_EQ(r.sampling.logprobs, -1);
  EXPECT_FALSE(r.strip_leading_space);
}

TEST(ParseRequest, MaxTokensDefaultsToWhatIsLeftOfTheContextWhenThatIsLess) {
  GenerateRequest m;
  for (int i = 0; i < 990; ++i) m.mutable_token_ids()->add_ids(5);
  EXPECT_EQ(Parsed(m).sampling.max_tokens, 10);
}

TEST(ParseRequest, ChatIsRenderedAndItsAnswerBeginsWithoutASpace) {
  GenerateRequest m;
  auto* message = m.mutable_chat()->add_messages();
  message->set_role(v1::ROLE_USER);
  message->set_content("hi");
  const Request r = Parsed(m);
  EXPECT_EQ(TinyTokenizer().Decode(r.prompt_ids), "[INST] hi [/INST]");
  EXPECT_TRUE(r.strip_leading_space);
}

TEST(ParseRequest, BestOfNeedsLogprobsThatTheClientDoesNotSee) {
  GenerateRequest m = Good();
  m.mutable_sampling()->set_best_of(3);
  const Request r = Parsed(m);
  EXPECT_EQ(r.n, 1);
  EXPECT_EQ(r.best_of, 3);
  EXPECT_EQ(r.sampling.logprobs, 0);
  EXPECT_FALSE(r.return_logprobs);
}

struct BadCase {
  const char* field;
  const char* description;  // a part of it: limit and value
  void (*change)(GenerateRequest&);
  bool stream = false;
};

const float kNan = std::numeric_limits<float>::quiet_NaN();

void AddTurn(GenerateRequest& m, v1::Role role, const char* content = "x") {
  auto* message = m.mutable_chat()->add_messages();
  message->set_role(role);
  message->set_content(content);
}

const BadCase kBadCases[] = {
    {"prompt", "must be set", [](GenerateRequest& m) { m.clear_text(); }},
    {"text", "must not be empty", [](GenerateRequest& m) { m.set_text(""); }},
    {"token_ids.ids", "must not be empty", [](GenerateRequest& m) { m.mutable_token_ids(); }},
    {"chat.messages", "must not be empty", [](GenerateRequest& m) { m.mutable_chat(); }},
    {"token_ids.ids[1]", "[0, 399], is 400",
     [](GenerateRequest& m) {
       m.mutable_token_ids()->add_ids(1);
       m.mutable_token_ids()->add_ids(400);
     }},
    {"prompt", "at most 999 tokens, has 1000",
     [](GenerateRequest& m) {
       for (int i = 0; i < 1000; ++i) m.mutable_token_ids()->add_ids(5);
     }},
    {"chat.messages[0]", "must be a user turn",
     [](GenerateRequest& m) { AddTurn(m, v1::ROLE_ASSISTANT); }},
    {"chat.messages[1]", "must be an assistant turn",
     [](GenerateRequest& m) { AddTurn(m, v1::ROLE_USER), AddTurn(m, v1::ROLE_USER); }},
    {"chat.messages[1]", "must be a user's",
     [](GenerateRequest& m) { AddTurn(m, v1::ROLE_USER), AddTurn(m, v1::ROLE_ASSISTANT); }},
    {"chat.messages[0].role", "is 17",
     [](GenerateRequest& m) { AddTurn(m, static_cast<v1::Role>(17)); }},
    {"chat.messages[0].content", "must not be empty",
     [](GenerateRequest& m) { AddTurn(m, v1::ROLE_USER, ""); }},
    {"request_id", "1 to 128 characters, is 0", [](GenerateRequest& m) { m.set_request_id(""); }},
    {"request_id", "1 to 128 characters, is 129",
     [](GenerateRequest& m) { m.set_request_id(std::string(129, 'x')); }},
    {"request_id", "printable ASCII", [](GenerateRequest& m) { m.set_request_id("a\nb"); }},
    {"cache_salt", "at most 128 characters, is 129",
     [](GenerateRequest& m) { m.set_cache_salt(std::string(129, 'x')); }},
    {"priority", "[-100, 100], is 101", [](GenerateRequest& m) { m.set_priority(101); }},
    {"sampling.n", "[1, 1024], is 0", [](GenerateRequest& m) { m.mutable_sampling()->set_n(0); }},
    {"sampling.n", "[1, 1024], is 2147483647",
     [](GenerateRequest& m) { m.mutable_sampling()->set_n(2147483647); }},
    {"sampling.best_of", "[2, 1024], is 1",
     [](GenerateRequest& m) {
       m.mutable_sampling()->set_n(2);
       m.mutable_sampling()->set_best_of(1);
     }},
    {"sampling.best_of", "[1, 1024], is 2147483647",
     [](GenerateRequest& m) { m.mutable_sampling()->set_best_of(2147483647); }},
    {"sampling.best_of", "must equal n (1) in GenerateStream, is 2",
     [](GenerateRequest& m) { m.mutable_sampling()->set_best_of(2); }, true},
    {"sampling.temperature", "[0, 100], is nan",
     [](GenerateRequest& m) { m.mutable_sampling()->set_temperature(kNan); }},
    {"sampling.top_p", "is 0", [](GenerateRequest& m) { m.mutable_sampling()->set_top_p(0); }},
    {"sampling.top_k", "[0, 400], is -1",
     [](GenerateRequest& m) { m.mutable_sampling()->set_top_k(-1); }},
    {"stop.max_tokens", "[1, 998], is 999",
     [](GenerateRequest& m) { m.mutable_stop()->set_max_tokens(999); }},
    {"stop.max_tokens", "is 0", [](GenerateRequest& m) { m.mutable_stop()->set_max_tokens(0); }},
    {"stop.min_tokens", "[0, 5], is 6",
     [](GenerateRequest& m) {
       m.mutable_stop()->set_max_tokens(5);
       m.mutable_stop()->set_min_tokens(6);
     }},
    {"stop.stop_strings", "at most 16 strings, are 17",
     [](GenerateRequest& m) {
       for (int i = 0; i < 17; ++i) m.mutable_stop()->add_stop_strings("x");
     }},
    {"stop.stop_strings[0]", "1 to 256 bytes, is 0",
     [](GenerateRequest& m) { m.mutable_stop()->add_stop_strings(""); }},
    {"stop.stop_strings[0]", "1 to 256 bytes, is 257",
     [](GenerateRequest& m) { m.mutable_stop()->add_stop_strings(std::string(257, 'x')); }},
    {"stop.include_stop_string", "stop_strings is empty",
     [](GenerateRequest& m) { m.mutable_stop()->set_include_stop_string(true); }},
    {"stop.ignore_eos", "EOS (2)",
     [](GenerateRequest& m) {
       m.mutable_stop()->set_ignore_eos(true);
       m.mutable_stop()->add_stop_token_ids(2);
     }},
    {"output.logprobs", "[0, 20], is 21",
     [](GenerateRequest& m) { m.mutable_output()->set_logprobs(21); }},
    {"output.logprobs", "is -1", [](GenerateRequest& m) { m.mutable_output()->set_logprobs(-1); }},
    {"stop", "field number 99",
     [](GenerateRequest& m) {
       m.mutable_stop()->GetReflection()->MutableUnknownFields(m.mutable_stop())->AddVarint(99, 1);
     }},
    {"GenerateRequest", "field number 77",
     [](GenerateRequest& m) {
       m.GetReflection()->MutableUnknownFields(&m)->AddLengthDelimited(77, "x");
     }},
};

TEST(ParseRequest, RefusesEachViolationWithFieldLimitAndValue) {
  for (const BadCase& c : kBadCases) {
    GenerateRequest m = Good();
    c.change(m);
    auto result = Parse(m, c.stream);
    const ApiError* error = std::get_if<ApiError>(&result);
    ASSERT_NE(error, nullptr) << c.field << " " << c.description;
    EXPECT_EQ(error->code, absl::StatusCode::kInvalidArgument);
    ASSERT_EQ(error->violations.size(), 1u) << c.field << ": " << error->message;
    EXPECT_EQ(error->violations[0].field, c.field);
    EXPECT_THAT(error->violations[0].description, HasSubstr(c.description)) << c.field;
  }
}

TEST(ParseRequest, NamesAllViolationsAtOnce) {
  GenerateRequest m = Good();
  m.mutable_sampling()->set_temperature(-1);
  m.mutable_stop()->add_stop_strings("");
  auto result = Parse(m);
  EXPECT_EQ(std::get<ApiError>(result).violations.size(), 2u);
}

TEST(ParseRequest, AnotherModelIsNotFound) {
  GenerateRequest m = Good();
  m.set_model("other");
  auto result = Parse(m);
  const ApiError& error = std::get<ApiError>(result);
  EXPECT_EQ(error.code, absl::StatusCode::kNotFound);
  EXPECT_EQ(error.resource_name, "other");
}

}  // namespace
}  // namespace bough::router
