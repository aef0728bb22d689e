#include "router/answer.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "common/check.h"

namespace bough::router {

Answer::Answer(std::shared_ptr<const Request> request, const Tokenizer* tokenizer)
    : request_(std::move(request)), tokenizer_(tokenizer) {
  const auto stops =
      std::shared_ptr<const std::vector<std::string>>(request_, &request_->stop_strings);
  choices_.reserve(request_->best_of);
  for (int i = 0; i < request_->best_of; ++i) {
    choices_.emplace_back(
        TextStream(stops, request_->include_stop_string, request_->strip_leading_space));
  }
}

Answer::Step Answer::OnToken(const TokenRow& row, absl::Time now) {
  Choice& choice = choices_[row.choice];
  Step out;
  if (choice.num_tokens++ == 0) {
    choice.first_token = now;
  } else {
    out.gap = now - choice.last_token;
  }
  choice.last_token = now;
  choice.logprob_sum += row.logprob;
  ++num_tokens_;
  first_token_ = std::min(first_token_, now);

  DeltaEvent delta{.choice = row.choice, .text = {}, .token_ids = {}, .logprobs = {}};
  const bool is_text = row.finish != TokenFinish::kEos && row.finish != TokenFinish::kStopToken &&
                       row.token >= 0 && row.token < tokenizer_->vocab_size();
  if (is_text) delta.text = choice.text.Push(tokenizer_->PieceBytes(row.token));
  if (row.finish != TokenFinish::kNone) delta.text += choice.text.Flush();
  if (request_->return_token_ids) delta.token_ids.push_back(row.token);
  if (request_->return_logprobs) {
    delta.logprobs.push_back({row.token, row.logprob, row.top_ids, row.top_logprobs});
  }

  out.stopped_here = choice.text.stop_index() >= 0 && row.finish == TokenFinish::kNone;
  if (row.finish != TokenFinish::kNone || out.stopped_here) {
    FinishEvent finish{.choice = row.choice};
    finish.mean_logprob = choice.logprob_sum / static_cast<double>(choice.num_tokens);
    finish.stop_string = choice.text.stop_index();
    if (finish.stop_string < 0 && row.finish == TokenFinish::kLength) {
      finish.reason = FinishReason::kLength;
    }
    if (finish.stop_string < 0 && row.finish == TokenFinish::kStopToken) {
      finish.stop_token_id = row.token;
    }
    out.finish = finish;
  }
  if (!delta.text.empty() || !delta.token_ids.empty() || !delta.logprobs.empty()) {
    out.delta = std::move(delta);
  }
  return out;
}

double Answer::MeanItlSeconds() const {
  absl::Duration total;
  int64_t gaps = 0;
  for (const Choice& c : choices_) {
    if (c.num_tokens < 2) continue;
    total += c.last_token - c.first_token;
    gaps += c.num_tokens - 1;
  }
  return gaps == 0 ? 0 : absl::ToDoubleSeconds(total) / static_cast<double>(gaps);
}

std::vector<int> RankChoices(const std::vector<double>& mean_logprobs, int n) {
  CHECK_LE(n, static_cast<int>(mean_logprobs.size()));
  std::vector<int> order(mean_logprobs.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return mean_logprobs[a] > mean_logprobs[b]; });
  order.resize(n);
  return order;
}

}  // namespace bough::router
