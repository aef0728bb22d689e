#include "worker/batch.h"

#include <gtest/gtest.h>

namespace bough {
namespace {

Batch SomeBatch() {
  Batch b;
  b.step = int64_t{1} << 40;
  b.num_decode = 1;
  b.max_blocks = 2;
  b.max_top = 3;
  b.tokens = {5, 6, 7};
  b.positions = {64, 0, 1};
  b.slot_mapping = {128, 0, 1};
  b.cu_seqlens_q = {0, 1, 3};
  b.seqlens_kv = {65, 2};
  b.block_tables = {1, 2, 0, -1};
  b.nodes = {{0, 1, 0, 64}};
  b.own_begin = {64, 0};
  b.copy_src = {4};
  b.copy_dst = {5};
  b.logits_tokens = {0, 2};
  b.samples.resize(2);
  b.samples[1].seed = ~uint64_t{0};
  b.samples[1].temperature = 0.25f;
  b.bias_ids = {9};
  b.bias_values = {-1.5f};
  b.seen_ids = {1, 2};
  b.seen_counts = {0, 3};
  b.banned_ids = {2};
  return b;
}

TEST(Batch, UnpackGivesWhatWasPacked) {
  const Batch a = SomeBatch();
  std::vector<uint8_t> bytes;
  Pack(a, &bytes);
  Batch b;
  b.tokens = {1, 1, 1, 1};  // what an earlier step left is overwritten
  Unpack(bytes, &b);
  EXPECT_EQ(b.step, a.step);
  EXPECT_FALSE(b.shutdown);
  EXPECT_EQ(b.num_decode, 1);
  EXPECT_EQ(b.max_blocks, 2);
  EXPECT_EQ(b.max_top, 3);
  EXPECT_EQ(b.tokens, a.tokens);
  EXPECT_EQ(b.cu_seqlens_q, a.cu_seqlens_q);
  EXPECT_EQ(b.block_tables, a.block_tables);
  EXPECT_EQ(b.samples[1].seed, a.samples[1].seed);
  EXPECT_EQ(b.samples[1].temperature, 0.25f);
  EXPECT_EQ(b.bias_values, a.bias_values);
  EXPECT_EQ(b.banned_ids, a.banned_ids);
  std::vector<uint8_t> again;  // every field that is packed
  Pack(b, &again);
  EXPECT_EQ(again, bytes);
}

TEST(Batch, ShutdownIsAnEmptyBatch) {
  Batch a, b = SomeBatch();
  a.shutdown = true;
  std::vector<uint8_t> bytes;
  Pack(a, &bytes);
  Unpack(bytes, &b);
  EXPECT_TRUE(b.shutdown);
  EXPECT_EQ(b.num_tokens(), 0);
  EXPECT_TRUE(b.samples.empty());
}

TEST(BatchDeathTest, UnpackRefusesWhatIsNotOneBatch) {
  std::vector<uint8_t> bytes;
  Pack(SomeBatch(), &bytes);
  Batch b;
  for (size_t size = 0; size < bytes.size(); size += 37) {
    EXPECT_DEATH(Unpack(std::span(bytes).first(size), &b), "truncated batch") << size;
  }
  bytes.push_back(0);
  EXPECT_DEATH(Unpack(bytes, &b), "bytes after the batch's end");
}

}  // namespace
}  // namespace bough
