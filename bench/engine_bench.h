// Cases of bench-engine, run through a whole engine: scheduler, batch, model, sampling.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "worker/engine.h"
#include "worker/model_runner.h"

namespace bough {

struct EngineBenchOptions {
  int max_num_seqs = 256;
  int max_num_batched_tokens = 2048;
  int context = 64;  // prompt of a decode case's sequences, less the one token that is not cached
};

// A decode step at its steady state.
struct DecodeResult {
  double ms = 0;         // median
  double kv_tokens = 0;  // keys in the cache that a step sees, halfway through the measurement
};

// One engine for all cases: prompts of decode cases are prefilled once and then found in the cache.
class EngineBench {
 public:
  EngineBench(const EngineBenchOptions& options, ModelRunner* runner);

  // "" when the case can run, else why it cannot: rows, blocks or the model's length do not suffice.
  std::string WhyNot(int num_seqs, int num_tokens_each) const;

  // A step that decodes `num_seqs` sequences which share nothing.
  DecodeResult Decode(int num_seqs);
  // A step that decodes `num_samples` samples of one prompt of `context` tokens.
  DecodeResult Shared(int context, int num_samples);
  // Submit to first token of a prompt that is not in the cache, in ms; median.
  double Prefill(int num_tokens);
  // Requests per second while `concurrency` of them are always under way, each as soon as another is
  // done: random prompts, so many tokens in and out. Counted from the end of the first
  // `concurrency` to that of twice as many more, 20 s at most.
  double Mixed(int concurrency, int num_tokens_in, int num_tokens_out);

  int context() const { return options_.context; }

 private:
  std::vector<int32_t> RandomPrompt(int num_tokens);
  Request MakeRequest(std::vector<int32_t> prompt, int max_tokens, int num_samples);
  void CacheContexts(int num_contexts);
  StepEvents Step();
  DecodeResult MedianDecodeStep(int num_rows, double shared_tokens, double prompt_tokens);
  void CancelAll();

  const EngineBenchOptions options_;
  ModelRunner* const runner_;
  Engine engine_;
  std::vector<std::vector<int32_t>> contexts_;  // prompts that are in the cache
  uint64_t next_handle_ = 1;
  std::mt19937 random_{1};
};

}  // namespace bough
