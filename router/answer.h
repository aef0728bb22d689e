// A request's answer as it grows: accepted tokens in; deltas, finishes and the final counts out.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "common/tokenizer.h"
#include "router/client_events.h"
#include "router/group_messages.h"
#include "router/text_stream.h"

namespace bough::router {

// Sans-io, not thread-safe.
class Answer {
 public:
  // `tokenizer` outlives the answer.
  Answer(std::shared_ptr<const Request> request, const Tokenizer* tokenizer);

  struct Step {
    std::optional<DeltaEvent> delta;  // absent when there is nothing to say
    std::optional<FinishEvent> finish;
    bool stopped_here = false;                  // by a stop string: the group does not know yet
    absl::Duration gap = absl::ZeroDuration();  // since the choice's last token; zero for its first
  };
  // A token that passed the relay: the next of its choice, which is not finished.
  Step OnToken(const TokenRow& row, absl::Time now);

  int64_t num_tokens() const { return num_tokens_; }
  // InfiniteFuture before the first token.
  absl::Time first_token() const { return first_token_; }
  // Over all choices with at least two tokens; 0 without any.
  double MeanItlSeconds() const;

 private:
  struct Choice {
    explicit Choice(TextStream t) : text(std::move(t)) {}
    TextStream text;
    int64_t num_tokens = 0;
    double logprob_sum = 0;
    absl::Time first_token, last_token;
  };

  const std::shared_ptr<const Request> request_;
  const Tokenizer* const tokenizer_;
  std::vector<Choice> choices_;
  int64_t num_tokens_ = 0;
  absl::Time first_token_ = absl::InfiniteFuture();
};

// best_of: which `n` of the choices have the highest mean logprob, best first; ties by index.
std::vector<int> RankChoices(const std::vector<double>& mean_logprobs, int n);

}  // namespace bough::router
