#include "bench/soak_requests.h"

#include <algorithm>

namespace bough {
namespace {

constexpr int kNumBeginnings = 5;

}  // namespace

SoakRequests::SoakRequests(const SoakShape& shape, uint32_t seed) : shape_(shape), random_(seed) {
  for (int i = 0; i < kNumBeginnings; ++i) {
    beginnings_.push_back(Tokens(Pick(1, shape_.max_prompt_tokens)));
  }
}

std::vector<int32_t> SoakRequests::Tokens(int num) {
  std::vector<int32_t> tokens(num);
  for (int32_t& token : tokens) token = Token();
  return tokens;
}

// Short ones, long ones, and those that begin as others do.
std::vector<int32_t> SoakRequests::Prompt() {
  if (OneIn(2)) return Tokens(Pick(1, 64));
  if (OneIn(2)) return Tokens(Pick(1, shape_.max_prompt_tokens));
  std::vector<int32_t> prompt = beginnings_[Pick(0, kNumBeginnings - 1)];
  if (OneIn(2)) prompt.resize(Pick(1, static_cast<int>(prompt.size())));
  const int room = shape_.max_prompt_tokens - static_cast<int>(prompt.size());
  for (int32_t token : Tokens(Pick(0, std::min(room, 100)))) prompt.push_back(token);
  return prompt;
}

SamplingParams SoakRequests::Sampling() {
  SamplingParams p;
  p.seed = random_();
  p.max_tokens = OneIn(6) ? Pick(1, 3) : Pick(1, shape_.max_answer_tokens);
  p.temperature = OneIn(4) ? 0 : Real(0.1f, 2);
  if (OneIn(3)) p.top_p = Real(0.05f, 1);
  if (OneIn(3)) p.top_k = Pick(1, 100);
  if (OneIn(4)) p.min_p = Real(0, 0.3f);
  if (OneIn(3)) p.repetition_penalty = Real(0.8f, 1.5f);
  if (OneIn(4)) p.presence_penalty = Real(-2, 2);
  if (OneIn(4)) p.frequency_penalty = Real(-2, 2);
  if (OneIn(4)) p.min_tokens = Pick(0, p.max_tokens);
  p.ignore_eos = OneIn(2);
  for (int n = OneIn(3) ? Pick(1, 8) : 0; n > 0; --n) p.stop_token_ids.push_back(Token());
  if (OneIn(5)) {
    // Distinct: a token may be named once.
    for (int i = Pick(1, 40), step = Pick(1, 50); i > 0; --i) {
      p.logit_bias.push_back({i * step % shape_.limits.vocab_size, Real(-20, 20)});
    }
    std::sort(p.logit_bias.begin(), p.logit_bias.end());
    const auto same = [](const auto& a, const auto& b) { return a.first == b.first; };
    p.logit_bias.erase(std::unique(p.logit_bias.begin(), p.logit_bias.end(), same),
                       p.logit_bias.end());
  }
  if (OneIn(3)) p.logprobs = Pick(0, shape_.limits.max_logprobs);
  return p;
}

// One or several; at times as another group left them behind, with the middle of an answer.
std::vector<ChoiceStart> SoakRequests::Choices(int max_tokens) {
  std::vector<ChoiceStart> choices;
  for (int n = OneIn(3) ? Pick(2, 6) : 1, i = 0; i < n; ++i) choices.push_back({i, {}});
  if (!OneIn(6)) return choices;
  for (ChoiceStart& choice : choices) choice.emitted = Tokens(Pick(0, max_tokens - 1));
  return choices;
}

Request SoakRequests::Next(absl::Time now) {
  Request r;
  r.key = {.link = static_cast<uint64_t>(Pick(0, shape_.num_links - 1)), .handle = next_handle_++};
  r.request_id = "soak";
  r.prompt_ids = Prompt();
  r.sampling = Sampling();
  r.choices = Choices(r.sampling.max_tokens);
  if (OneIn(4)) r.cache_salt = "other tenant";
  r.priority = Pick(-1, 1);
  if (OneIn(8)) r.deadline = now + absl::Milliseconds(Pick(0, 3000));
  return r;
}

}  // namespace bough
