#include "worker/model/shard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace bough {
namespace {

using ::testing::HasSubstr;

ModelConfig Mixtral() {
  ModelConfig c;
  c.vocab_size = 259;
  c.hidden_size = 512;
  c.intermediate_size = 250;
  c.num_attention_heads = 8;
  c.num_key_value_heads = 2;
  c.head_dim = 64;
  c.num_local_experts = 5;
  c.num_experts_per_tok = 2;
  return c;
}

ModelConfig Dense() {
  ModelConfig c = Mixtral();
  c.num_local_experts = c.num_experts_per_tok = 0;
  return c;
}

std::string ErrorOf(const ModelConfig& config, int tp_size, int ep_size) {
  const auto shard = MakeShard(config, tp_size, ep_size, 0);
  EXPECT_EQ(shard.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(shard.status().message());
}

TEST(Shard, OneRankHoldsEverything) {
  const auto s = MakeShard(Mixtral(), 1, 1, 0);
  ASSERT_TRUE(s.ok()) << s.status();
  EXPECT_EQ(s->heads, (Range{0, 8}));
  EXPECT_EQ(s->kv_heads, (Range{0, 2}));
  EXPECT_EQ(s->experts, (Range{0, 5}));
  EXPECT_EQ(s->intermediate, (Range{0, 250}));
  EXPECT_EQ(s->vocab, (Range{0, 259}));
}

TEST(Shard, SpreadsTheRemainderOfExpertsAndVocabulary) {
  const auto first = MakeShard(Mixtral(), 1, 2, 0), second = MakeShard(Mixtral(), 1, 2, 1);
  EXPECT_EQ(first->experts, (Range{0, 2}));
  EXPECT_EQ(second->experts, (Range{2, 5}));
  EXPECT_EQ(first->vocab, (Range{0, 129}));
  EXPECT_EQ(second->vocab, (Range{129, 259}));
  EXPECT_EQ(first->intermediate, (Range{0, 250}));
}

TEST(Shard, ReplicatesKvHeadsWhenThereAreMoreRanks) {
  const std::vector<Range> want = {{0, 1}, {0, 1}, {1, 2}, {1, 2}};
  for (int rank = 0; rank < 4; ++rank) {
    const auto s = MakeShard(Mixtral(), 4, 1, rank);
    EXPECT_EQ(s->heads, (Range{2 * rank, 2 * rank + 2}));
    EXPECT_EQ(s->kv_heads, want[rank]) << rank;
  }
}

TEST(Shard, RankIsExpertGroupTimesTpSizePlusSlice) {
  const auto s = MakeShard(Mixtral(), 2, 2, 3);  // ep_rank 1, tp_rank 1
  EXPECT_EQ(s->experts, (Range{2, 5}));
  EXPECT_EQ(s->intermediate, (Range{125, 250}));
}

TEST(Shard, SplitsADenseMlpOverAllRanks) {
  const auto s = MakeShard(Dense(), 2, 2, 1);
  EXPECT_EQ(s->intermediate, (Range{62, 125}));
  EXPECT_EQ(s->experts.size(), 0);
}

TEST(Shard, NamesTheFlagsThatDoNotFit) {
  EXPECT_EQ(ErrorOf(Mixtral(), 3, 1),
            "--tp-size * --ep-size = 3 does not divide num_attention_heads = 8");
  ModelConfig odd = Mixtral();
  odd.num_attention_heads = 12;
  odd.num_key_value_heads = 3;
  EXPECT_THAT(ErrorOf(odd, 2, 1), HasSubstr("num_key_value_heads = 3: neither divides the other"));
  EXPECT_EQ(ErrorOf(Mixtral(), 1, 8), "--ep-size = 8 exceeds num_local_experts = 5");
  EXPECT_EQ(ErrorOf(Mixtral(), 0, 1), "--tp-size must be at least 1, is 0");
  EXPECT_EQ(ErrorOf(Mixtral(), 1, -1), "--ep-size must be at least 1, is -1");
}

}  // namespace
}  // namespace bough
