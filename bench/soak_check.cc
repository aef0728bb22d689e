#include "bench/soak_check.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>

#include "absl/strings/str_cat.h"

namespace bough {
namespace {

constexpr int kMaxPrinted = 20;
constexpr float kRounding = 1e-3f;  // a logprob is 0 at most, but for the rounding of the log-sum

std::string Where(const TokenEvent& t) {
  return absl::StrCat("request ", t.key.handle, " choice ", t.choice, " index ", t.index, ": ");
}

}  // namespace

void SoakCheck::Violation(const std::string& what) {
  if (num_violations_++ < kMaxPrinted) std::fprintf(stderr, "VIOLATION: %s\n", what.c_str());
}

void SoakCheck::Submitted(const Request& request) {
  Live live;
  live.sampling = request.sampling;
  live.prompt_tokens = static_cast<int>(request.prompt_ids.size());
  live.has_deadline = request.deadline != absl::InfiniteFuture();
  for (const ChoiceStart& choice : request.choices) {
    live.choices[choice.index].next_index = static_cast<int32_t>(choice.emitted.size());
  }
  live_[KeyOf(request.key)] = std::move(live);
  ++counts_.requests;
}

void SoakCheck::Cancelled(const RequestKey& key, int32_t choice) {
  const auto live = live_.find(KeyOf(key));
  if (live == live_.end()) return;
  if (choice < 0) {
    live->second.cancelled = true;
    ++counts_.cancelled_requests;
    return;
  }
  const auto found = live->second.choices.find(choice);
  if (found == live->second.choices.end()) return;
  found->second.cancelled = true;
  ++counts_.cancelled_choices;
}

void SoakCheck::CancelledLink(uint64_t link) {
  for (auto& [key, live] : live_) {
    if (key.first != link) continue;
    live.cancelled = true;
    ++counts_.cancelled_requests;
  }
}

RequestKey SoakCheck::LiveKey(int i) const {
  const auto& [link, handle] = std::next(live_.begin(), i)->first;
  return {link, handle};
}

int SoakCheck::NumChoices(const RequestKey& key) const {
  return static_cast<int>(live_.at(KeyOf(key)).choices.size());
}

void SoakCheck::Observe(const StepEvents& events) {
  for (const AckEvent& ack : events.acks) {
    const auto live = live_.find(KeyOf(ack.key));
    if (live == live_.end() || live->second.acknowledged) {
      Violation(absl::StrCat("an Ack too many: request ", ack.key.handle));
    } else {
      live->second.acknowledged = true;
    }
  }
  for (const TokenEvent& token : events.tokens) ObserveToken(token);
  for (const DoneEvent& done : events.dones) ObserveDone(done);
}

void SoakCheck::ObserveToken(const TokenEvent& t) {
  ++counts_.tokens;
  if (t.token < 0 || t.token >= limits_.vocab_size) {
    Violation(Where(t) + absl::StrCat("token ", t.token));
  }
  const auto found = live_.find(KeyOf(t.key));
  if (found == live_.end()) return Violation(Where(t) + "no such request, or it is done");
  Live& live = found->second;
  const auto at = live.choices.find(t.choice);
  if (at == live.choices.end()) return Violation(Where(t) + "no such choice");
  Choice& choice = at->second;
  if (!live.acknowledged) Violation(Where(t) + "before the Ack");
  if (choice.ended) Violation(Where(t) + "after the choice's end");
  if (live.cancelled || choice.cancelled) Violation(Where(t) + "after it was cancelled");
  if (t.index != choice.next_index) {
    Violation(Where(t) + absl::StrCat("expected index ", choice.next_index));
  }
  choice.next_index = t.index + 1;
  choice.ended = t.finish != Finish::kNone;
  ++live.num_generated;
  CheckFinish(t, live);
  CheckLogprobs(t, live.sampling);
}

void SoakCheck::CheckFinish(const TokenEvent& t, const Live& live) {
  const SamplingParams& p = live.sampling;
  const bool is_stop = std::find(p.stop_token_ids.begin(), p.stop_token_ids.end(), t.token) !=
                       p.stop_token_ids.end();
  const bool is_eos = !p.ignore_eos && t.token == limits_.eos_token_id;
  const bool is_last =
      t.index + 1 == p.max_tokens || live.prompt_tokens + t.index + 1 == limits_.max_model_len;
  const Finish want = is_eos    ? Finish::kEos
                      : is_stop ? Finish::kStopToken
                      : is_last ? Finish::kLength
                                : Finish::kNone;
  if (t.finish != want) {
    Violation(Where(t) + absl::StrCat("finish ", static_cast<int>(t.finish), ", expected ",
                                      static_cast<int>(want)));
  }
  if (is_eos || is_stop) ++counts_.stopped_early;
  // With every other token banned too the sampler has no choice, which no request here asks for.
  if ((is_eos || is_stop) && t.index < p.min_tokens) Violation(Where(t) + "ends before min_tokens");
}

void SoakCheck::CheckLogprobs(const TokenEvent& t, const SamplingParams& sampling) {
  if (sampling.logprobs < 0) return;
  ++counts_.rows_with_logprobs;
  if (!std::isfinite(t.logprob) || t.logprob > kRounding) {
    Violation(Where(t) + absl::StrCat("logprob ", t.logprob));
  }
  if (static_cast<int>(t.top_ids.size()) != sampling.logprobs) {
    return Violation(Where(t) + absl::StrCat(t.top_ids.size(), " top logprobs"));
  }
  for (size_t i = 0; i < t.top_ids.size(); ++i) {
    const float logprob = t.top_logprobs[i];
    const bool descends = i == 0 || logprob <= t.top_logprobs[i - 1];
    const bool in_range = t.top_ids[i] >= 0 && t.top_ids[i] < limits_.vocab_size;
    if (!std::isfinite(logprob) || logprob > kRounding || !descends || !in_range) {
      return Violation(Where(t) +
                       absl::StrCat("top logprob ", i, ": token ", t.top_ids[i], " ", logprob));
    }
  }
}

void SoakCheck::ObserveDone(const DoneEvent& done) {
  const std::string where = absl::StrCat("request ", done.key.handle, ": ");
  const auto found = live_.find(KeyOf(done.key));
  if (found == live_.end()) return Violation(where + "done twice, or never submitted");
  const Live& live = found->second;
  if (done.generated_tokens != live.num_generated) {
    Violation(where +
              absl::StrCat("says ", done.generated_tokens, " tokens, sent ", live.num_generated));
  }
  counts_.cached_tokens += done.cached_tokens;
  if (done.status.ok()) {
    ++counts_.finished;
    for (const auto& [index, choice] : live.choices) {
      if (!choice.ended && !choice.cancelled) {
        Violation(where + absl::StrCat("done, but choice ", index, " has no end"));
      }
    }
  } else if (done.reason == "CANCELLED" && live.cancelled) {
    ++counts_.ended_cancelled;
  } else if (done.reason == "DEADLINE" && live.has_deadline) {
    ++counts_.ended_by_deadline;
  } else {
    Violation(where + absl::StrCat(done.reason, " ", done.status.ToString()));
  }
  live_.erase(found);
}

}  // namespace bough
