#include "kernels/sampling.h"

#include "tests/kernels_cuda/device_tensor.h"
#include "tests/testing/compare.h"

namespace bough {
namespace {

// expf against std::exp in sums of up to 32000 terms.
constexpr Tolerance kLogprobTolerance = {.abs = 2e-6, .rel = 2e-6};
constexpr int kMaxTop = 20;

struct Batch {
  std::vector<float> logits;  // [num_logits_rows, vocab_size]
  int vocab_size = 0;
  std::vector<SamplingRow> rows = {};
  std::vector<int32_t> bias_ids = {}, seen_ids = {}, seen_counts = {}, banned_ids = {};
  std::vector<float> bias_values = {};
};

struct Answer {
  std::vector<int32_t> tokens, top_ids;
  std::vector<float> logprobs, top_logprobs;
};

Answer EmptyAnswer(const Batch& b) {
  const size_t num_rows = b.rows.size();
  return {std::vector<int32_t>(num_rows, -1), std::vector<int32_t>(num_rows * kMaxTop, -1),
          std::vector<float>(num_rows, 7), std::vector<float>(num_rows * kMaxTop, 7)};
}

Answer OnCpu(const Batch& b) {
  Answer a = EmptyAnswer(b);
  cpu::Sample({.logits = b.logits.data(),
               .rows = b.rows.data(),
               .bias_ids = b.bias_ids.data(),
               .bias_values = b.bias_values.data(),
               .seen_ids = b.seen_ids.data(),
               .seen_counts = b.seen_counts.data(),
               .banned_ids = b.banned_ids.data(),
               .tokens = a.tokens.data(),
               .logprobs = a.logprobs.data(),
               .top_ids = a.top_ids.data(),
               .top_logprobs = a.top_logprobs.data(),
               .num_rows = static_cast<int>(b.rows.size()),
               .vocab_size = b.vocab_size,
               .max_top = kMaxTop});
  return a;
}

Answer OnGpu(const Batch& b) {
  const Answer empty = EmptyAnswer(b);
  const DeviceBytes logits(b.logits), rows(b.rows), bias_ids(b.bias_ids),
      bias_values(b.bias_values), seen_ids(b.seen_ids), seen_counts(b.seen_counts),
      banned_ids(b.banned_ids), tokens(empty.tokens), logprobs(empty.logprobs),
      top_ids(empty.top_ids), top_logprobs(empty.top_logprobs);
  cuda::Sample({.logits = logits.as<float>(),
                .rows = rows.as<SamplingRow>(),
                .bias_ids = bias_ids.as<int32_t>(),
                .bias_values = bias_values.as<float>(),
                .seen_ids = seen_ids.as<int32_t>(),
                .seen_counts = seen_counts.as<int32_t>(),
                .banned_ids = banned_ids.as<int32_t>(),
                .tokens = tokens.as<int32_t>(),
                .logprobs = logprobs.as<float>(),
                .top_ids = top_ids.as<int32_t>(),
                .top_logprobs = top_logprobs.as<float>(),
                .num_rows = static_cast<int>(b.rows.size()),
                .vocab_size = b.vocab_size,
                .max_top = kMaxTop},
               nullptr);
  return {tokens.Download<int32_t>(), top_ids.Download<int32_t>(), logprobs.Download<float>(),
          top_logprobs.Download<float>()};
}

void ExpectAgree(const Batch& b) {
  const Answer got = OnGpu(b), want = OnCpu(b);
  const int num_rows = static_cast<int>(b.rows.size());
  EXPECT_EQ(got.tokens, want.tokens);
  EXPECT_EQ(got.top_ids, want.top_ids);
  EXPECT_TRUE(Close(got.logprobs, want.logprobs, {num_rows}, kLogprobTolerance));
  EXPECT_TRUE(Close(got.top_logprobs, want.top_logprobs, {num_rows, kMaxTop}, kLogprobTolerance));
}

// `row` at positions 0, 1, ... over random logits.
Batch Draws(int vocab_size, SamplingRow row, int num_draws = 50) {
  Random random(1);
  Batch b = {.logits = RandomFloats(random, vocab_size, 8), .vocab_size = vocab_size};
  for (int i = 0; i < num_draws; ++i) {
    row.position = i;
    b.rows.push_back(row);
  }
  return b;
}

class Sampling : public CudaTest {};

TEST_F(Sampling, GreedyTakesTheLikeliestAndOfTiesTheLowest) {
  ExpectAgree(Draws(32000, {.temperature = 0}, 1));
  ExpectAgree({.logits = {1, 3, 2, 3}, .vocab_size = 4, .rows = {{.temperature = 0}}});
  ExpectAgree({.logits = {-0.0f, 0, -1}, .vocab_size = 3, .rows = {{.temperature = 0}}});
}

TEST_F(Sampling, DrawsTheCpusTokensForEachSetting) {
  const SamplingRow settings[] = {
      {.seed = 1},
      {.temperature = 0.3f, .seed = 2},
      {.temperature = 100, .seed = 3, .choice = 5},
      {.top_k = 1, .seed = 4},
      {.top_k = 7, .seed = 5},
      {.top_p = 0.01f, .seed = 6},
      {.top_p = 0.9f, .seed = 7},
      {.min_p = 0.1f, .seed = 8},
      {.temperature = 2, .top_p = 0.5f, .min_p = 0.01f, .top_k = 100, .seed = ~uint64_t{0}}};
  for (int vocab_size : {1, 5, 1000, 32000}) {
    for (const SamplingRow& row : settings) {
      SCOPED_TRACE(testing::Message() << vocab_size << " tokens, seed " << row.seed);
      ExpectAgree(Draws(vocab_size, row));
    }
  }
}

TEST_F(Sampling, CutsTiesAsTheCpuDoes) {
  Batch b = Draws(200, {.top_k = 10});
  for (float& x : b.logits) x = std::round(x / 4);
  ExpectAgree(b);
  for (SamplingRow& row : b.rows) row.top_k = 0, row.top_p = 0.6f;
  ExpectAgree(b);
}

TEST_F(Sampling, AppliesBiasPenaltiesAndBans) {
  Batch b = Draws(500, {.repetition_penalty = 1.5f,
                        .presence_penalty = 0.5f,
                        .frequency_penalty = 0.25f,
                        .bias_end = 2,
                        .seen_begin = 1,
                        .seen_end = 4,
                        .banned_end = 1});
  b.bias_ids = {3, 499};
  b.bias_values = {12, -100};
  b.seen_ids = {0, 3, 10, 11};
  b.seen_counts = {9, 0, 2, 1};
  b.banned_ids = {7};
  b.logits[7] = 50;
  ExpectAgree(b);
}

TEST_F(Sampling, NeverTakesNaNAndAnswersZeroWhenAllIsBanned) {
  ExpectAgree({.logits = {NAN, 1, NAN, 2}, .vocab_size = 4, .rows = {{}, {.temperature = 0}}});
  ExpectAgree({.logits = {-INFINITY, -INFINITY, NAN},
               .vocab_size = 3,
               .rows = {{}, {.temperature = 0}, {.top_p = 0.5f, .top_k = 2}}});
}

TEST_F(Sampling, ReportsLogprobsOfTheRawLogits) {
  Batch b = Draws(32000, {.temperature = 0.5f, .top_k = 5}, 4);
  b.rows[1].num_logprobs = 0;
  b.rows[2].num_logprobs = 3;
  b.rows[3].num_logprobs = kMaxTop;
  ExpectAgree(b);
}

TEST_F(Sampling, SamplesOfOnePromptShareARowOfLogits) {
  Batch b = Draws(1000, {.seed = 9}, 6);
  const Batch other = Draws(1000, {});
  b.logits.insert(b.logits.begin(), other.logits.rbegin(), other.logits.rend());
  for (int i = 0; i < 6; ++i)
    b.rows[i].choice = i, b.rows[i].position = 0, b.rows[i].logits_row = 1;
  ExpectAgree(b);
}

TEST(SamplingDeathTest, RefusesAVocabularyThatSharedMemoryCannotHold) {
  EXPECT_DEATH(cuda::Sample({.num_rows = 1, .vocab_size = 56000}, nullptr),
               "must be in \\[1, 55296\\], is 56000");
}

}  // namespace
}  // namespace bough
