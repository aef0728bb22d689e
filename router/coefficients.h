// What the router learns of each group while it serves. No constant of any machine.
//
// Who fits what: a step's time is fitted by the group (worker/step_time.h), which alone sees its steps;
// its Load carries the result. A prompt's time, from its first step to its first token, is fitted here:
// it is what placement predicts, and it has in it what a fit of steps leaves out (attention over a long
// context, decode rows beside the chunks).
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace bough::router {

// Seconds from a prompt's first step to its first token. All zero = not fitted yet.
struct PrefillCost {
  double per_prompt = 0;
  double per_token = 0;      // uncached ones
  double per_pair = 0;       // (token, token before it) that attention meets
  double per_token_row = 0;  // a token beside one decoding row

  bool fitted() const { return per_prompt + per_token + per_pair + per_token_row > 0; }
  // `rows`: choices that decode on the group meanwhile.
  double Seconds(double uncached, double cached, double rows) const {
    return per_prompt +
           uncached * (per_token + per_pair * (cached + uncached / 2) + per_token_row * rows);
  }
};

// Recursive least squares of PrefillCost on relative errors, weights >= 0, older prompts fading. One fit
// for all groups, since they serve one model, and one factor per group for how much slower it is: a
// group's first prompts, or its few ones, cannot make it look so slow that it never gets another.
// Not thread-safe.
class PrefillFit {
 public:
  // Fewer prompts than this, over all groups, and cost() is all zero.
  static constexpr int kMinPrompts = 50;

  explicit PrefillFit(int num_groups) : slowness_(num_groups) {}

  // One measured prompt. seconds <= 0 or no uncached token: ignored.
  void Add(int group, double uncached, double cached, double rows, double seconds);
  // A group starts anew, perhaps on another machine.
  void Forget(int group) { slowness_[group] = {}; }
  PrefillCost cost(int group) const;

 private:
  static constexpr int kNum = 4;
  using Vector = std::array<double, kNum>;
  struct Slowness {
    double sum = 0, weight = 0;  // faded, of log(measured / fitted)
  };

  PrefillCost common() const { return {weights_[0], weights_[1], weights_[2], weights_[3]}; }

  std::array<Vector, kNum> a_ = {};  // faded sums of x x^T, x = features / seconds
  Vector b_ = {};                    // faded sums of x
  Vector weights_ = {};
  int64_t num_prompts_ = 0;
  std::vector<Slowness> slowness_;
};

// Share of recent time during which a group had prefill work: rho of the policy. Not thread-safe.
class BusyShare {
 public:
  // `busy` held for the last `seconds`.
  void Add(bool busy, double seconds);
  double value() const { return value_; }

 private:
  double value_ = 0;
};

// Mean number of tokens that an answer took, recent ones counting more. Not thread-safe.
class MeanAnswer {
 public:
  void Add(int num_tokens);
  double value() const { return value_; }  // 0 = no answer yet

 private:
  double value_ = 0;
  int64_t num_answers_ = 0;
};

}  // namespace bough::router
