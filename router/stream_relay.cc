#include "router/stream_relay.h"

#include <utility>

#include "common/check.h"

namespace bough::router {

StreamRelay::StreamRelay(int num_choices, int max_retries)
    : choices_(num_choices), num_unfinished_(num_choices), max_retries_(max_retries) {}

StreamRelay::Attempt StreamRelay::Begin(int group, uint64_t epoch) {
  CHECK_EQ(group_, -1);
  CHECK(!finished());
  group_ = group;
  epoch_ = epoch;
  Attempt out{.number = ++attempt_, .choices = {}};
  for (int i = 0; i < static_cast<int>(choices_.size()); ++i) {
    if (!choices_[i].finished) out.choices.push_back({i, choices_[i].emitted});
  }
  return out;
}

bool StreamRelay::IsCurrent(int group, uint64_t epoch, int attempt) const {
  return group == group_ && epoch == epoch_ && attempt == attempt_;
}

StreamRelay::Verdict StreamRelay::OnRow(int group, uint64_t epoch, const TokenRow& row) {
  if (!IsCurrent(group, epoch, row.attempt)) return Verdict::kDrop;
  if (row.choice < 0 || row.choice >= static_cast<int>(choices_.size())) return Verdict::kBroken;
  Choice& choice = choices_[row.choice];
  const int next = static_cast<int>(choice.emitted.size());
  if (choice.finished || row.index < next) return Verdict::kDrop;
  if (row.index > next) return Verdict::kBroken;
  choice.emitted.push_back(row.token);
  ++num_tokens_;
  if (row.finish != TokenFinish::kNone) FinishChoice(row.choice);
  return Verdict::kForward;
}

void StreamRelay::FinishChoice(int choice) {
  if (choices_[choice].finished) return;
  choices_[choice].finished = true;
  --num_unfinished_;
}

StreamRelay::Next StreamRelay::EndAttempt(bool allowed) {
  CHECK_GE(group_, 0) << "no attempt is current";
  group_ = -1;
  return allowed ? Next::kRetry : Next::kGiveUp;
}

StreamRelay::Next StreamRelay::OnLost() {
  excluded_ |= uint64_t{1} << group_;
  return EndAttempt(num_retries_++ < max_retries_);
}

StreamRelay::Next StreamRelay::OnRefused() {
  excluded_ |= uint64_t{1} << group_;
  const bool first = !refused_;
  refused_ = true;
  return EndAttempt(first);
}

StreamRelay::Next StreamRelay::OnSentBack() { return EndAttempt(!std::exchange(sent_back_, true)); }

StreamRelay::Next StreamRelay::OnStale() { return EndAttempt(num_retries_++ < max_retries_); }

}  // namespace bough::router
