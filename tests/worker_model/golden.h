// What Hugging Face transformers computed (tests/golden/make_golden.py).
#pragma once

#include <string>
#include <vector>

#include "tests/worker_model/hand_batch.h"

namespace bough::testing {

inline constexpr char kTinyMixtral[] = "tests/golden/tiny_mixtral";
inline constexpr char kTinyLlama[] = "tests/golden/tiny_llama";
inline constexpr char kTinyMistral[] = "tests/golden/tiny_mistral";
inline constexpr char kDemo[] = "models/demo";

// Of a tiny model: a prompt, its logits at every position, its greedy continuation.
struct TinyCase {
  TokenIds prompt;
  std::vector<float> logits;  // [prompt, vocab_size]
  TokenIds greedy;
};
std::vector<TinyCase> ReadTinyCases(const std::string& model_dir);

// Of the demo model.
struct DemoGolden {
  std::vector<TokenIds> logits_prompts;
  std::vector<float> logits;  // [logits_prompts, vocab_size], after the last token
  std::vector<TokenIds> greedy_prompts, greedy_tokens;
};
DemoGolden ReadDemoGolden();

}  // namespace bough::testing
