#include "router/config.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/tiny_tokenizer.h"

namespace bough::router {
namespace {

using ::testing::HasSubstr;

RouterConfig Good() {
  RouterConfig config;
  config.groups = {{"a", "host:1"}};
  config.model = bough::testing::WriteTinyModelFolder();
  return config;
}

TEST(RouterConfig, TheDefaultsAreValidOnceModelAndGroupsAreSet) {
  EXPECT_TRUE(Good().Validate().ok()) << Good().Validate();
}

TEST(RouterConfig, SaysEachProblemOnALineOfItsOwn) {
  RouterConfig config = Good();
  config.listen = "nowhere";
  config.max_requests_in_flight = 0;
  config.groups.push_back({"a", "host:70000"});
  config.log_level = "loud";
  EXPECT_EQ(config.Validate().message(),
            "--listen: must be host:port, is \"nowhere\"\n"
            "--groups: the name a is used twice\n"
            "--groups: must be host:port, is \"host:70000\"\n"
            "--max-requests-in-flight: must be positive, is 0\n"
            "--log-level: must be debug, info, warning or error, is \"loud\"");
}

TEST(RouterConfig, SaysWhichTokenizerIsMissing) {
  RouterConfig config = Good();
  config.model = "/no/such/folder";
  EXPECT_THAT(std::string(config.Validate().message()),
              HasSubstr("there is no /no/such/folder/tokenizer.model"));
}

TEST(ParseGroups, ReadsNamesAndAddresses) {
  const auto groups = ParseGroups("a=h:1,b=[::1]:2");
  ASSERT_TRUE(groups.ok());
  ASSERT_EQ(groups->size(), 2u);
  EXPECT_EQ((*groups)[1].name, "b");
  EXPECT_EQ((*groups)[1].address, "[::1]:2");
}

TEST(ParseGroups, RefusesAnItemWithoutAName) {
  EXPECT_THAT(std::string(ParseGroups("a=h:1,h:2").status().message()), HasSubstr("\"h:2\""));
}

}  // namespace
}  // namespace bough::router
