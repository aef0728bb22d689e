#include "client/answer.h"

#include <sstream>

#include "client/choice_printer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace bough::client {
namespace {

v1::GenerateStreamResponse Delta(int index, const std::string& text) {
  v1::GenerateStreamResponse event;
  event.mutable_delta()->set_index(index);
  event.mutable_delta()->set_text(text);
  return event;
}

v1::GenerateStreamResponse Finish(int index) {
  v1::GenerateStreamResponse event;
  event.mutable_finish()->set_index(index);
  event.mutable_finish()->set_finish_reason(v1::FINISH_REASON_LENGTH);
  return event;
}

TEST(Fold, JoinsDeltasOfInterleavedChoices) {
  v1::GenerateResponse answer;
  for (const auto& event : {Delta(1, "b"), Delta(0, "a"), Delta(1, "B"), Finish(1)}) {
    Fold(event, &answer);
  }
  ASSERT_EQ(answer.choices_size(), 2);
  EXPECT_EQ(answer.choices(0).text(), "a");
  EXPECT_EQ(answer.choices(0).finish_reason(), v1::FINISH_REASON_UNSPECIFIED);
  EXPECT_EQ(answer.choices(1).text(), "bB");
  EXPECT_EQ(answer.choices(1).index(), 1);
  EXPECT_EQ(answer.choices(1).finish_reason(), v1::FINISH_REASON_LENGTH);
}

TEST(Fold, KeepsStartAndEnd) {
  v1::GenerateStreamResponse start, end;
  start.mutable_start()->set_group("g1");
  start.mutable_start()->set_request_id("r");
  end.mutable_end()->mutable_usage()->set_cached_prompt_tokens(64);
  end.mutable_end()->mutable_timings()->set_e2e_seconds(2);
  v1::GenerateResponse answer;
  Fold(start, &answer);
  Fold(end, &answer);
  EXPECT_EQ(answer.group(), "g1");
  EXPECT_EQ(answer.request_id(), "r");
  EXPECT_EQ(answer.usage().cached_prompt_tokens(), 64);
  EXPECT_EQ(answer.timings().e2e_seconds(), 2);
}

TEST(SummaryLine, HasTheFiguresOfTheAnswer) {
  v1::GenerateResponse answer;
  answer.set_group("g0");
  answer.mutable_usage()->set_prompt_tokens(130);
  answer.mutable_usage()->set_cached_prompt_tokens(128);
  answer.mutable_usage()->set_completion_tokens(32);
  answer.mutable_usage()->set_shared_kv_blocks(2);
  answer.mutable_timings()->set_ttft_seconds(0.0412);
  answer.mutable_timings()->set_e2e_seconds(0.5);
  EXPECT_EQ(SummaryLine(answer),
            "group=g0 prompt_tokens=130 cached_tokens=128 completion_tokens=32 shared_blocks=2 "
            "ttft_ms=41.2 tokens_per_s=64.0");
}

TEST(SummaryLine, HasNoRateBeforeAnyTimeHasPassed) {
  EXPECT_THAT(SummaryLine({}), ::testing::EndsWith("tokens_per_s=0.0"));
}

TEST(ToJson, IsOneLineWithProtoNamesAndZeros) {
  v1::GenerateResponse answer;
  answer.add_choices()->set_text("a\nb");
  answer.mutable_usage()->set_prompt_tokens(3);
  const std::string text = ToJson(answer);
  EXPECT_EQ(text.find('\n'), std::string::npos);
  const auto json = nlohmann::json::parse(text);
  EXPECT_EQ(json["choices"][0]["text"], "a\nb");
  EXPECT_EQ(json["usage"]["prompt_tokens"], 3);
  EXPECT_EQ(json["usage"]["cached_prompt_tokens"], 0);
}

TEST(LogprobTable, HasALinePerTokenWithItsAlternatives) {
  v1::Choice choice;
  v1::TokenLogprob* token = choice.add_logprobs();
  token->set_token_id(17);
  token->set_logprob(-0.5);
  token->add_top()->set_token_id(4);
  EXPECT_EQ(LogprobTable(choice), "      17   -0.5000  4:0.0000\n");
}

class ChoicePrinterTest : public ::testing::Test {
 protected:
  std::string After(const v1::GenerateStreamResponse& event) {
    Fold(event, &answer_);
    printer_.Update(answer_);
    return out_.str();
  }

  std::ostringstream out_;
  ChoicePrinter printer_{out_, /*headers=*/true};
  v1::GenerateResponse answer_;
};

TEST_F(ChoicePrinterTest, StreamsTheFirstAndHoldsBackTheOthers) {
  EXPECT_EQ(After(Delta(1, "later")), "[choice 0]\n");
  EXPECT_EQ(After(Delta(0, "now")), "[choice 0]\nnow");
  EXPECT_EQ(After(Delta(0, ", on")), "[choice 0]\nnow, on");
}

TEST_F(ChoicePrinterTest, GoesOnWithTheNextWhenOneHasEnded) {
  After(Delta(1, "late"));
  After(Delta(0, "first"));
  EXPECT_EQ(After(Finish(0)), "[choice 0]\nfirst\n[choice 1]\nlate");
  EXPECT_EQ(After(Delta(1, "r")), "[choice 0]\nfirst\n[choice 1]\nlater");
  EXPECT_EQ(After(Finish(1)), "[choice 0]\nfirst\n[choice 1]\nlater\n");
}

TEST_F(ChoicePrinterTest, PrintsWhatIsThereWhenTheStreamBreaks) {
  After(Delta(1, "half"));
  printer_.Finish(answer_);
  EXPECT_EQ(out_.str(), "[choice 0]\n\n[choice 1]\nhalf\n");
}

TEST(ChoicePrinter, HasNoHeaderForASingleChoice) {
  std::ostringstream out;
  ChoicePrinter printer(out, /*headers=*/false);
  v1::GenerateResponse answer;
  Fold(Delta(0, "text\n"), &answer);
  printer.Finish(answer);
  EXPECT_EQ(out.str(), "text\n");
}

}  // namespace
}  // namespace bough::client
