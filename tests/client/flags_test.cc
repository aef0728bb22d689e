#include "client/flags.h"

#include <sstream>

#include "client/request_flags.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bough::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class FlagSetTest : public ::testing::Test {
 protected:
  FlagSetTest() : flags_("bough test", "", "A command.") {
    flags_.Add("count", "N", "how many", &count_);
    flags_.Add("name", "TEXT", "what", &name_);
    flags_.Add("loud", "", "noise", &loud_);
    flags_.Add("max-tokens", "N", "limit", &max_tokens_);
    flags_.Add("timeout", "DURATION", "wait", &timeout_);
  }
  std::string ErrorOf(const std::vector<std::string>& args) {
    return std::string(flags_.Parse(args).status().message());
  }

  FlagSet flags_;
  int count_ = 1, max_tokens_ = 0;
  std::string name_;
  bool loud_ = false;
  absl::Duration timeout_ = absl::InfiniteDuration();
};

TEST_F(FlagSetTest, TakesValuesAfterEqualsOrAsNextArgument) {
  ASSERT_TRUE(flags_.Parse({"--count=3", "--name", "a b", "--timeout=1m30s"}).ok());
  EXPECT_EQ(count_, 3);
  EXPECT_EQ(name_, "a b");
  EXPECT_EQ(timeout_, absl::Seconds(90));
}

TEST_F(FlagSetTest, TakesANegativeNumberAsNextArgument) {
  ASSERT_TRUE(flags_.Parse({"--count", "-3"}).ok());
  EXPECT_EQ(count_, -3);
}

TEST_F(FlagSetTest, SetsAndClearsBooleansWithoutAValue) {
  ASSERT_TRUE(flags_.Parse({"--loud"}).ok());
  EXPECT_TRUE(loud_);
  ASSERT_TRUE(flags_.Parse({"--noloud"}).ok());
  EXPECT_FALSE(loud_);
  ASSERT_TRUE(flags_.Parse({"--loud=true"}).ok());
  EXPECT_TRUE(loud_);
}

TEST_F(FlagSetTest, TreatsUnderscoresAsDashes) {
  ASSERT_TRUE(flags_.Parse({"--max_tokens=5"}).ok());
  EXPECT_EQ(max_tokens_, 5);
}

TEST_F(FlagSetTest, ReturnsPositionalArgumentsInOrder) {
  const auto positional = flags_.Parse({"one", "--count=2", "-", "--", "--three"});
  ASSERT_TRUE(positional.ok());
  EXPECT_THAT(*positional, ElementsAre("one", "-", "--three"));
}

TEST_F(FlagSetTest, NamesTheNearestFlagWhenOneIsUnknown) {
  EXPECT_EQ(ErrorOf({"--maxtoken=5"}),
            "unknown flag --maxtoken for 'bough test'; did you mean --max-tokens?");
  EXPECT_EQ(ErrorOf({"--zzzzzz=5"}),
            "unknown flag --zzzzzz for 'bough test'; see 'bough test --help'");
}

TEST_F(FlagSetTest, RefusesABadValueNamingFlagAndValue) {
  EXPECT_THAT(ErrorOf({"--count=many"}), HasSubstr("--count=many is not a valid N"));
  EXPECT_THAT(ErrorOf({"--count=99999999999"}), HasSubstr("--count=99999999999"));
  EXPECT_THAT(ErrorOf({"--loud=perhaps"}), HasSubstr("--loud=perhaps is not a valid boolean"));
}

TEST_F(FlagSetTest, RefusesAMissingValue) {
  EXPECT_EQ(ErrorOf({"--count"}), "--count needs a value (N)");
}

TEST_F(FlagSetTest, ListsEveryFlagWithItsDefaultInHelp) {
  EXPECT_THAT(flags_.Help(), HasSubstr("--count N"));
  EXPECT_THAT(flags_.Help(), HasSubstr("how many (1)"));
  EXPECT_TRUE(FlagSet::WantsHelp({"x", "--help"}));
  EXPECT_FALSE(FlagSet::WantsHelp({"--", "--help"}));
}

TEST(Nearest, IsSilentWhenNothingIsNear) {
  EXPECT_EQ(Nearest("generat", {"generate", "chat"}), "generate");
  EXPECT_EQ(Nearest("xyz", {"generate", "chat"}), std::nullopt);
}

class RequestFlagsTest : public ::testing::Test {
 protected:
  RequestFlagsTest() : flags_("bough test", "", "") { AddSamplingFlags(flags_, &request_); }

  FlagSet flags_;
  v1::GenerateRequest request_;
};

TEST_F(RequestFlagsTest, LeaveUnsetWhatIsNotGiven) {
  ASSERT_TRUE(flags_.Parse({"--temperature=0"}).ok());
  EXPECT_TRUE(request_.sampling().has_temperature());
  EXPECT_EQ(request_.sampling().temperature(), 0);
  EXPECT_FALSE(request_.sampling().has_top_p());
  EXPECT_FALSE(request_.sampling().has_n());
  EXPECT_FALSE(request_.stop().has_max_tokens());
}

TEST_F(RequestFlagsTest, RepeatStopStringsWithCommasInThem) {
  ASSERT_TRUE(flags_.Parse({"--stop", "a,b", "--stop=\n"}).ok());
  EXPECT_THAT(request_.stop().stop_strings(), ElementsAre("a,b", "\n"));
}

TEST_F(RequestFlagsTest, SplitStopTokenIdsAndBiasesAtCommas) {
  ASSERT_TRUE(
      flags_.Parse({"--stop-token-ids=5,17", "--stop-token-ids", "9", "--logit-bias=3:-100,4:1.5"})
          .ok());
  EXPECT_THAT(request_.stop().stop_token_ids(), ElementsAre(5, 17, 9));
  ASSERT_EQ(request_.sampling().logit_bias_size(), 2);
  EXPECT_EQ(request_.sampling().logit_bias(0).bias(), -100);
  EXPECT_EQ(request_.sampling().logit_bias(1).token_id(), 4);
}

TEST_F(RequestFlagsTest, RefuseAMalformedBias) {
  const auto parsed = flags_.Parse({"--logit-bias=3"});
  EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("'3' is not TOKEN:BIAS"));
}

TEST_F(RequestFlagsTest, PassNotANumberOnToTheServer) {
  ASSERT_TRUE(flags_.Parse({"--temperature=nan"}).ok());
  EXPECT_NE(request_.sampling().temperature(), request_.sampling().temperature());
}

class PromptTest : public ::testing::Test {
 protected:
  absl::Status Resolve(const std::vector<std::string>& args, const std::string& input,
                       bool in_tty = false) {
    std::istringstream in(input);
    Io io{in, out_, out_, in_tty, false, false, interrupt_};
    PromptFlags prompt;
    FlagSet flags("bough test", "", "");
    prompt.AddFlags(flags);
    const auto positional = flags.Parse(args);
    if (!positional.ok()) return positional.status();
    return prompt.Resolve(*positional, io, &request_);
  }

  std::ostringstream out_;
  Interrupt interrupt_;
  v1::GenerateRequest request_;
};

TEST_F(PromptTest, ComesFromTheArgumentBeforeStdin) {
  ASSERT_TRUE(Resolve({"Hello"}, "not me").ok());
  EXPECT_EQ(request_.text(), "Hello");
}

TEST_F(PromptTest, ComesFromStdinLessOneNewline) {
  ASSERT_TRUE(Resolve({}, "line\n\n").ok());
  EXPECT_EQ(request_.text(), "line\n");
}

TEST_F(PromptTest, MayBeTokenIds) {
  ASSERT_TRUE(Resolve({"--token-ids=1,2,3"}, "").ok());
  EXPECT_THAT(request_.token_ids().ids(), ElementsAre(1, 2, 3));
}

TEST_F(PromptTest, MayBeEmptySoThatTheServerSaysSo) {
  ASSERT_TRUE(Resolve({""}, "").ok());
  EXPECT_TRUE(request_.has_text());
}

TEST_F(PromptTest, IsRefusedWhenThereAreTwoOrNone) {
  EXPECT_THAT(std::string(Resolve({"a", "b"}, "").message()), HasSubstr("more than one prompt"));
  EXPECT_THAT(std::string(Resolve({"a", "--token-ids=1"}, "").message()),
              HasSubstr("more than one prompt"));
  EXPECT_THAT(std::string(Resolve({}, "", /*in_tty=*/true).message()), HasSubstr("no prompt"));
}

TEST_F(PromptTest, IsRefusedWhenItsFileCannotBeRead) {
  EXPECT_THAT(std::string(Resolve({"--prompt-file=/nonexistent/x"}, "").message()),
              HasSubstr("cannot read /nonexistent/x"));
}

TEST_F(PromptTest, IsRefusedWhenItIsNotUtf8) {
  EXPECT_THAT(std::string(Resolve({}, "abc\xff").message()), HasSubstr("UTF-8 at byte 3"));
}

}  // namespace
}  // namespace bough::client
