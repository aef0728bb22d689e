#include "bench/engine_bench.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/block_hash.h"
#include "common/check.h"
#include "worker/clock.h"

namespace bough {
namespace {

constexpr int kWarmUpSteps = 6, kDecodeSteps = 48;
// Never reached: a decode case ends by cancelling. Every sequence may grow so far in the cache.
constexpr int kMaxTokens = 128;
constexpr int kMinPrefills = 3, kMaxPrefills = 20;
constexpr absl::Duration kPrefillTime = absl::Seconds(1);
constexpr absl::Duration kMixedTime = absl::Seconds(20);

double Median(std::vector<double> values) {
  CHECK(!values.empty());
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

double MillisecondsSince(absl::Time start) {
  return absl::ToDoubleMilliseconds(MonotonicNow() - start);
}

EngineConfig MakeEngineConfig(const EngineBenchOptions& options, const ModelRunner& runner) {
  EngineConfig config = EngineConfigFor(runner);
  config.max_num_seqs = options.max_num_seqs;
  config.max_num_batched_tokens = options.max_num_batched_tokens;
  config.clock = MonotonicNow;
  return config;
}

}  // namespace

EngineBench::EngineBench(const EngineBenchOptions& options, ModelRunner* runner)
    : options_(options), runner_(runner), engine_(MakeEngineConfig(options, *runner), runner) {}

std::string EngineBench::WhyNot(int num_seqs, int num_tokens_each) const {
  if (num_seqs > options_.max_num_seqs) {
    return absl::StrCat("needs max_num_seqs ", num_seqs, ", is ", options_.max_num_seqs);
  }
  if (num_tokens_each + kMaxTokens > runner_->max_model_len()) {
    return absl::StrCat("needs max_model_len ", num_tokens_each + kMaxTokens, ", is ",
                        runner_->max_model_len());
  }
  // The scheduler keeps a block per row free when it admits (worker/scheduler.h).
  const int64_t blocks_each = (num_tokens_each + kMaxTokens + kBlockSize - 1) / kBlockSize + 1;
  if (num_seqs * blocks_each > runner_->num_blocks()) {
    return absl::StrCat("needs ", num_seqs * blocks_each, " KV blocks, there are ",
                        runner_->num_blocks());
  }
  return "";
}

std::vector<int32_t> EngineBench::RandomPrompt(int num_tokens) {
  std::uniform_int_distribution<int32_t> token(3, runner_->config().vocab_size - 1);
  std::vector<int32_t> prompt(num_tokens);
  for (int32_t& id : prompt) id = token(random_);
  return prompt;
}

Request EngineBench::MakeRequest(std::vector<int32_t> prompt, int max_tokens, int num_samples) {
  Request request;
  request.key = {.link = 0, .handle = next_handle_++};
  request.prompt_ids = std::move(prompt);
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  request.sampling.temperature = 0.8f;
  request.sampling.top_p = 0.95f;
  // With one seed all rows would draw alike, and tokens that are alike go to the same experts.
  request.sampling.seed = random_();
  for (int i = 0; i < num_samples; ++i) request.choices.push_back({.index = i, .emitted = {}});
  return request;
}

StepEvents EngineBench::Step() {
  auto events = engine_.Step(MonotonicNow());
  CHECK(events.has_value()) << "the engine has nothing to do";
  return *std::move(events);
}

void EngineBench::CancelAll() {
  engine_.CancelLink(0);
  while (engine_.Step(MonotonicNow()).has_value()) {
  }
}

// Whole blocks of the prompts, and one token more: what is left to compute when they are found.
void EngineBench::CacheContexts(int num_contexts) {
  int num_left = 0;
  for (; static_cast<int>(contexts_.size()) < num_contexts; ++num_left) {
    contexts_.push_back(RandomPrompt(options_.context + 1));
    engine_.Submit(MakeRequest(contexts_.back(), 1, 1));
  }
  while (num_left > 0) {
    for (const DoneEvent& done : Step().dones) {
      CHECK_OK(done.status);
      --num_left;
    }
  }
}

DecodeResult EngineBench::Decode(int num_seqs) {
  CacheContexts(num_seqs);
  for (int i = 0; i < num_seqs; ++i) engine_.Submit(MakeRequest(contexts_[i], kMaxTokens, 1));
  return MedianDecodeStep(num_seqs, 0, 1.0 * num_seqs * (options_.context + 1));
}

DecodeResult EngineBench::Shared(int context, int num_samples) {
  engine_.Submit(MakeRequest(RandomPrompt(context), kMaxTokens, num_samples));
  return MedianDecodeStep(num_samples, context, 0);
}

// From one result to the next, of steps that decode all `num_rows` rows and nothing else.
// shared_tokens + prompt_tokens: keys before the answers.
DecodeResult EngineBench::MedianDecodeStep(int num_rows, double shared_tokens,
                                           double prompt_tokens) {
  std::vector<double> ms;
  int64_t num_answer_tokens = 0, first = 0;
  absl::Time last = absl::InfinitePast();
  for (int num_steps = 0; num_steps < kWarmUpSteps + kDecodeSteps;) {
    const StepEvents events = Step();
    CHECK(events.dones.empty()) << events.dones[0].status;
    num_answer_tokens += static_cast<int64_t>(events.tokens.size());
    const absl::Time now = MonotonicNow();
    const bool steady = events.decode_rows == num_rows && events.prefill_tokens == 0;
    if (steady && ++num_steps > kWarmUpSteps) {
      ms.push_back(absl::ToDoubleMilliseconds(now - last));
    } else {
      first = num_answer_tokens;
    }
    last = now;
  }
  CancelAll();
  const double answers = (first + num_answer_tokens) / 2.0;
  return {Median(ms), shared_tokens + prompt_tokens + answers};
}

double EngineBench::Prefill(int num_tokens) {
  std::vector<double> ms;
  const absl::Time begin = MonotonicNow();
  for (int i = 0; i < kMaxPrefills; ++i) {
    if (i >= kMinPrefills && MonotonicNow() - begin > kPrefillTime) break;
    std::vector<int32_t> prompt = RandomPrompt(num_tokens);
    const absl::Time start = MonotonicNow();
    engine_.Submit(MakeRequest(std::move(prompt), 1, 1));
    while (Step().tokens.empty()) {
    }
    ms.push_back(MillisecondsSince(start));
    CancelAll();
  }
  return Median(ms);
}

double EngineBench::Mixed(int concurrency, int num_tokens_in, int num_tokens_out) {
  const auto submit = [&] {
    engine_.Submit(MakeRequest(RandomPrompt(num_tokens_in), num_tokens_out, 1));
  };
  for (int i = 0; i < concurrency; ++i) submit();
  const int num_warm_up = concurrency, num_wanted = 3 * concurrency;
  int num_done = 0, num_at_start = 0;
  absl::Time start = absl::InfiniteFuture(), now = MonotonicNow();
  while (num_done < num_wanted && now - start < kMixedTime) {
    const StepEvents events = Step();
    now = MonotonicNow();
    for (const DoneEvent& done : events.dones) {
      CHECK_OK(done.status);
      CHECK_EQ(done.cached_tokens, 0);
      ++num_done;
      submit();
    }
    if (start == absl::InfiniteFuture() && num_done >= num_warm_up) {
      start = now;
      num_at_start = num_done;
    }
  }
  CancelAll();
  return (num_done - num_at_start) / absl::ToDoubleSeconds(now - start);
}

}  // namespace bough
