#include "bench/attention_cases.h"

#include <gtest/gtest.h>

#include <set>

#include "common/block_hash.h"

namespace bough {
namespace {

const AttentionCase& Find(const std::vector<AttentionCase>& cases, const std::string& name) {
  for (const AttentionCase& c : cases) {
    if (c.name() == name) return c;
  }
  ADD_FAILURE() << name;
  return cases[0];
}

TEST(AttentionCases, HaveNamesOfTheirOwn) {
  std::set<std::string> names;
  for (const AttentionCase& c : AttentionCases())
    EXPECT_TRUE(names.insert(c.name()).second) << c.name();
}

// What PagedAttention asks of nodes: whole blocks, one after the other from key 0, up to own_begin.
TEST(AttentionCases, HaveNodesThatCoverWhatIsNotASequencesOwn) {
  for (const AttentionCase& c : AttentionCases()) {
    SCOPED_TRACE(c.name());
    for (int s = 0; s < c.num_seqs(); ++s) {
      int covered = 0;
      for (const SharedNode& node : c.nodes) {
        if (s < node.seq_begin || s >= node.seq_end) continue;
        EXPECT_EQ(node.key_begin, covered);
        EXPECT_EQ(node.key_end % kBlockSize, 0);
        covered = node.key_end;
      }
      EXPECT_EQ(covered, c.own_begin[s]);
      EXPECT_LE(covered, c.seqlens[s] - c.num_q);
    }
  }
}

TEST(AttentionCases, CountWhatIsSharedOnce) {
  const auto cases = AttentionCases();
  const auto& shared = Find(cases, "shared/fp8/heads=32:8/ctx=8192/private=64/b=64");
  EXPECT_EQ(shared.num_unique_keys(), 8192 + 64 * 64);
  EXPECT_EQ(shared.kv_bytes(), (8192 + 64 * 64) * 2 * 8 * 128);
  const auto& tree = Find(cases, "tree/bf16/system=2048/docs=8x4096/private=256/b=64");
  EXPECT_EQ(tree.num_unique_keys(), 2048 + 8 * 4096 + 64 * 256);
}

TEST(AttentionCases, AreBoundByMemoryOrByProducts) {
  const auto cases = AttentionCases();
  const auto& decode = Find(cases, "decode/bf16/heads=32:8/ctx=8192/b=64");
  const double bytes = 64 * 8192 * 4096.0 + 64 * 4096 * 4;
  EXPECT_NEAR(decode.floor_us(), bytes / 4.6e6, 1e-6);
  const auto& prefill = Find(cases, "prefill/bf16/t=16384");
  EXPECT_NEAR(prefill.floor_us(), 4.0 * 4096 * 16384 * 16385 / 2 / 774e6, 1e-6);
}

}  // namespace
}  // namespace bough
