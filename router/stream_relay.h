// Exactly once: what of a request's tokens may reach its client, over all attempts to run it.
//
//   no attempt --Begin--> running --row/finish--> finished
//                           |  ^
//          OnLost, OnRefused|  |Begin (another group, with what each choice already emitted)
//                           v  |
//                        between attempts --> given up, when kGiveUp
//
// A token passes only if it comes from the current attempt, under the epoch that the attempt began
// with, and its index is the next of its choice. So every index passes once and none is taken back,
// whatever groups repeat, delay or lose.
#pragma once

#include <cstdint>
#include <vector>

#include "router/group_messages.h"

namespace bough::router {

// Sans-io, not thread-safe.
class StreamRelay {
 public:
  // `max_retries`: attempts after the first that a lost group may cost.
  StreamRelay(int num_choices, int max_retries);

  struct Attempt {
    int number = 0;
    std::vector<ChoiceStart> choices;  // those that are not finished
  };
  // REQUIRES: no attempt is current and some choice is unfinished. `group` in [0, 64).
  Attempt Begin(int group, uint64_t epoch);

  // Whether a message of this origin concerns the current attempt.
  bool IsCurrent(int group, uint64_t epoch, int attempt) const;

  enum class Verdict {
    kForward,  // new: pass it on
    kDrop,     // stale or already passed
    kBroken,   // skips an index or names a choice that does not exist: treat the attempt as lost
  };
  Verdict OnRow(int group, uint64_t epoch, const TokenRow& row);

  // The router itself ended a choice (stop string). Its later rows are dropped.
  void FinishChoice(int choice);

  enum class Next { kRetry, kGiveUp };
  // The current attempt's group died or broke the protocol. Not chosen again for this request.
  Next OnLost();
  // The group took nothing (full or draining). Allowed once; not chosen again either.
  Next OnRefused();
  // The group's queue was longer than thought. Allowed once; it may be chosen again.
  Next OnSentBack();
  // The group has a newer epoch than the attempt; it may be chosen again. Counts as a retry.
  Next OnStale();

  // Bit per group that must not be chosen.
  uint64_t excluded_groups() const { return excluded_; }
  bool finished() const { return num_unfinished_ == 0; }
  bool any_token() const { return num_tokens_ > 0; }
  int64_t num_tokens() const { return num_tokens_; }
  int group() const { return group_; }  // -1 between attempts
  int attempt() const { return attempt_; }
  uint64_t epoch() const { return epoch_; }
  int num_retries() const { return num_retries_; }

 private:
  Next EndAttempt(bool allowed);

  struct Choice {
    std::vector<int32_t> emitted;
    bool finished = false;
  };
  std::vector<Choice> choices_;
  int num_unfinished_;
  const int max_retries_;
  int num_retries_ = 0;
  bool refused_ = false, sent_back_ = false;
  int group_ = -1;
  int attempt_ = 0;  // the last begun; 0 = none yet
  uint64_t epoch_ = 0;
  uint64_t excluded_ = 0;
  int64_t num_tokens_ = 0;
};

}  // namespace bough::router
