#include "common/sampling_params.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>

namespace bough {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Request {
  std::vector<int32_t> prompt = {1, 5, 6};
  SamplingParams params;
  int num_choices = 1;
};

ModelLimits Limits() {
  ModelLimits limits;
  limits.vocab_size = 100;
  limits.max_model_len = 50;
  return limits;
}

std::vector<FieldViolation> Validate(const Request& r) {
  return ValidateRequest(r.prompt, r.params, r.num_choices, Limits());
}

TEST(ValidateRequest, AcceptsDefaults) { EXPECT_TRUE(Validate({}).empty()); }

TEST(ValidateRequest, AcceptsBothEndsOfEveryRange) {
  Request low;
  low.prompt = {0};
  low.params = {.temperature = 0,
                .top_p = 1e-6f,
                .top_k = 0,
                .min_p = 0,
                .repetition_penalty = 1e-6f,
                .presence_penalty = -2,
                .frequency_penalty = -2,
                .logit_bias = {{0, -100.f}},
                .stop_token_ids = {0},
                .max_tokens = 1,
                .logprobs = 0};
  EXPECT_TRUE(Validate(low).empty());

  Request high;
  high.prompt.assign(49, 99);
  high.num_choices = 1024;
  high.params = {.temperature = 100,
                 .top_p = 1,
                 .top_k = 100,
                 .min_p = 1,
                 .repetition_penalty = 10,
                 .presence_penalty = 2,
                 .frequency_penalty = 2,
                 .logit_bias = {{99, 100.f}},
                 .stop_token_ids = std::vector<int32_t>(64, 99),
                 .max_tokens = 1,
                 .min_tokens = 1,
                 .logprobs = 20};
  EXPECT_TRUE(Validate(high).empty());
}

struct BadCase {
  std::function<void(Request&)> spoil;
  FieldViolation expected;
};

class ValidateRequestTable : public testing::TestWithParam<BadCase> {};

TEST_P(ValidateRequestTable, NamesFieldLimitAndValue) {
  Request r;
  GetParam().spoil(r);
  const auto violations = Validate(r);
  ASSERT_EQ(violations.size(), 1u);
  EXPECT_EQ(violations[0].field, GetParam().expected.field);
  EXPECT_EQ(violations[0].description, GetParam().expected.description);
}

#define BAD(assignment) [](Request& r) { r.assignment; }
INSTANTIATE_TEST_SUITE_P(
    Prompt, ValidateRequestTable,
    testing::Values(BadCase{BAD(prompt.clear()), {"prompt", "must have at least 1 token, has 0"}},
                    BadCase{[](Request& r) { r.prompt.assign(50, 5), r.params.max_tokens = 1; },
                            {"prompt", "must have at most 49 tokens, has 50"}},
                    BadCase{BAD(prompt = (std::vector<int32_t>{1, 2, 3, 100})),
                            {"token_ids.ids[3]", "must be in [0, 99], is 100"}},
                    BadCase{BAD(prompt = (std::vector<int32_t>{1, -1, -2})),
                            {"token_ids.ids[1]", "must be in [0, 99], is -1"}}));

INSTANTIATE_TEST_SUITE_P(
    Sampling, ValidateRequestTable,
    testing::Values(
        BadCase{BAD(num_choices = 0), {"sampling.n", "must be in [1, 1024], is 0"}},
        BadCase{BAD(num_choices = 2147483647),
                {"sampling.n", "must be in [1, 1024], is 2147483647"}},
        BadCase{BAD(params.temperature = kNaN),
                {"sampling.temperature", "must be in [0, 100], is nan"}},
        BadCase{BAD(params.temperature = kInf),
                {"sampling.temperature", "must be in [0, 100], is inf"}},
        BadCase{BAD(params.temperature = -0.5f),
                {"sampling.temperature", "must be in [0, 100], is -0.5"}},
        BadCase{BAD(params.top_p = 0), {"sampling.top_p", "must be in (0, 1], is 0"}},
        BadCase{BAD(params.top_p = 1.5f), {"sampling.top_p", "must be in (0, 1], is 1.5"}},
        BadCase{BAD(params.top_p = kNaN), {"sampling.top_p", "must be in (0, 1], is nan"}},
        BadCase{BAD(params.top_k = -1), {"sampling.top_k", "must be in [0, 100], is -1"}},
        BadCase{BAD(params.top_k = 101), {"sampling.top_k", "must be in [0, 100], is 101"}},
        BadCase{BAD(params.min_p = -kInf), {"sampling.min_p", "must be in [0, 1], is -inf"}},
        BadCase{BAD(params.repetition_penalty = 0),
                {"sampling.repetition_penalty", "must be in (0, 10], is 0"}},
        BadCase{BAD(params.presence_penalty = 2.5f),
                {"sampling.presence_penalty", "must be in [-2, 2], is 2.5"}},
        BadCase{BAD(params.frequency_penalty = kNaN),
                {"sampling.frequency_penalty", "must be in [-2, 2], is nan"}}));

INSTANTIATE_TEST_SUITE_P(
    LogitBias, ValidateRequestTable,
    testing::Values(BadCase{[](Request& r) {
                              r.params.logit_bias = {{5, 1.f}, {100, 1.f}};
                            },
                            {"sampling.logit_bias[1].token_id", "must be in [0, 99], is 100"}},
                    BadCase{[](Request& r) {
                              r.params.logit_bias = {{5, kNaN}};
                            },
                            {"sampling.logit_bias[0].bias", "must be in [-100, 100], is nan"}},
                    BadCase{
                        [](Request& r) {
                          r.params.logit_bias = {{5, 1.f}, {5, 1.f}};
                        },
                        {"sampling.logit_bias[1].token_id", "must not repeat, 5 stands before"}}));

INSTANTIATE_TEST_SUITE_P(
    StopAndOutput, ValidateRequestTable,
    testing::Values(
        BadCase{BAD(params.max_tokens = 0), {"stop.max_tokens", "must be in [1, 47], is 0"}},
        BadCase{BAD(params.max_tokens = 48), {"stop.max_tokens", "must be in [1, 47], is 48"}},
        BadCase{BAD(params.min_tokens = 17), {"stop.min_tokens", "must be in [0, 16], is 17"}},
        BadCase{BAD(params.min_tokens = -1), {"stop.min_tokens", "must be in [0, 16], is -1"}},
        BadCase{BAD(params.stop_token_ids.assign(65, 5)),
                {"stop.stop_token_ids", "must have at most 64 ids, has 65"}},
        BadCase{BAD(params.stop_token_ids = (std::vector<int32_t>{3, 100})),
                {"stop.stop_token_ids[1]", "must be in [0, 99], is 100"}},
        BadCase{[](Request& r) {
                  r.params.stop_token_ids = {7, 2};
                  r.params.ignore_eos = true;
                },
                {"stop.ignore_eos", "must not be set when EOS (2) is in stop.stop_token_ids[1]"}},
        BadCase{BAD(params.logprobs = 21), {"output.logprobs", "must be in [0, 20], is 21"}},
        BadCase{BAD(params.logprobs = -2), {"output.logprobs", "must be in [0, 20], is -2"}}));
#undef BAD

TEST(ValidateRequest, RefusesTooManyBiasesAndLooksNoFurther) {
  Request r;
  r.params.logit_bias.assign(1000000, {1000, kNaN});
  const auto violations = Validate(r);
  ASSERT_EQ(violations.size(), 1u);
  EXPECT_EQ(violations[0].field, "sampling.logit_bias");
  EXPECT_EQ(violations[0].description, "must have at most 1024 entries, has 1000000");
}

TEST(ValidateRequest, ReportsEverythingInFieldOrder) {
  Request r;
  r.prompt.clear();
  r.num_choices = 0;
  r.params.temperature = kNaN;
  r.params.max_tokens = 0;
  r.params.logprobs = 99;
  const auto violations = Validate(r);
  ASSERT_EQ(violations.size(), 5u);
  EXPECT_EQ(violations[0].field, "prompt");
  EXPECT_EQ(violations[1].field, "sampling.n");
  EXPECT_EQ(violations[2].field, "sampling.temperature");
  EXPECT_EQ(violations[3].field, "stop.max_tokens");
  EXPECT_EQ(violations[4].field, "output.logprobs");
}

}  // namespace
}  // namespace bough
