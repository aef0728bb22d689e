#include "worker/seen_tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace bough {
namespace {

using ::testing::ElementsAre;

TEST(SeenTokens, ListsPromptTokensOnceWithCountZero) {
  const auto prompt = SeenTokens::Distinct(std::vector<int32_t>{9, 3, 9, 1});
  std::vector<int32_t> ids, counts;
  SeenTokens().AppendTo(prompt, &ids, &counts);
  EXPECT_THAT(ids, ElementsAre(1, 3, 9));
  EXPECT_THAT(counts, ElementsAre(0, 0, 0));
}

TEST(SeenTokens, CountsTheAnswerWhetherOrNotThePromptHadTheToken) {
  const auto prompt = SeenTokens::Distinct(std::vector<int32_t>{3, 1});
  SeenTokens seen;
  for (int32_t token : {7, 3, 7, 8}) seen.Add(token, prompt);
  std::vector<int32_t> ids = {100}, counts = {5};  // appends behind what is there
  seen.AppendTo(prompt, &ids, &counts);
  EXPECT_THAT(ids, ElementsAre(100, 1, 3, 7, 8));
  EXPECT_THAT(counts, ElementsAre(5, 0, 1, 2, 1));
}

}  // namespace
}  // namespace bough
