#include "common/sampling_params.h"

#include <algorithm>
#include <string_view>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace bough {
namespace {

// Collects violations, each as "must be <range>, is <value>".
class Violations {
 public:
  void Add(std::string field, std::string description) {
    list_.push_back({std::move(field), std::move(description)});
  }

  void CheckInt(std::string field, int64_t value, int64_t lo, int64_t hi) {
    if (value >= lo && value <= hi) return;
    Add(std::move(field), absl::StrFormat("must be in [%d, %d], is %d", lo, hi, value));
  }

  // [lo, hi]; NaN is outside of every range.
  void CheckFloat(std::string field, float value, float lo, float hi) {
    if (value >= lo && value <= hi) return;
    Add(std::move(field), absl::StrFormat("must be in [%g, %g], is %g", lo, hi, value));
  }

  // (lo, hi].
  void CheckFloatAbove(std::string field, float value, float lo, float hi) {
    if (value > lo && value <= hi) return;
    Add(std::move(field), absl::StrFormat("must be in (%g, %g], is %g", lo, hi, value));
  }

  bool CheckCount(std::string field, size_t count, int64_t limit, std::string_view what) {
    if (static_cast<int64_t>(count) <= limit) return true;
    Add(std::move(field), absl::StrFormat("must have at most %d %s, has %d", limit, what, count));
    return false;
  }

  std::vector<FieldViolation> Take() { return std::move(list_); }

 private:
  std::vector<FieldViolation> list_;
};

// Names the first bad id only: a client that mixes up tokenizers has thousands.
void CheckTokenIds(const std::string& field, const std::vector<int32_t>& ids, int vocab_size,
                   Violations& out) {
  const auto bad =
      std::find_if(ids.begin(), ids.end(), [&](int32_t id) { return id < 0 || id >= vocab_size; });
  if (bad == ids.end()) return;
  out.CheckInt(absl::StrFormat("%s[%d]", field, bad - ids.begin()), *bad, 0, vocab_size - 1);
}

void CheckPrompt(const std::vector<int32_t>& ids, const ModelLimits& limits, Violations& out) {
  if (ids.empty()) {
    out.Add("prompt", "must have at least 1 token, has 0");
    return;
  }
  // One token of the context is the answer's.
  out.CheckCount("prompt", ids.size(), limits.max_model_len - 1, "tokens");
  CheckTokenIds("token_ids.ids", ids, limits.vocab_size, out);
}

void CheckLogitBias(const SamplingParams& params, const ModelLimits& limits, Violations& out) {
  const auto& bias = params.logit_bias;
  if (!out.CheckCount("sampling.logit_bias", bias.size(), limits.max_logit_bias, "entries")) return;
  absl::flat_hash_set<int32_t> seen;
  for (size_t i = 0; i < bias.size(); ++i) {
    const std::string field = absl::StrFormat("sampling.logit_bias[%d]", i);
    const auto& [token_id, value] = bias[i];
    out.CheckInt(field + ".token_id", token_id, 0, limits.vocab_size - 1);
    out.CheckFloat(field + ".bias", value, -100, 100);
    if (!seen.insert(token_id).second) {
      out.Add(field + ".token_id", absl::StrFormat("must not repeat, %d stands before", token_id));
    }
  }
}

void CheckSampling(const SamplingParams& p, int num_choices, const ModelLimits& limits,
                   Violations& out) {
  out.CheckInt("sampling.n", num_choices, 1, limits.max_n);
  out.CheckFloat("sampling.temperature", p.temperature, 0, 100);
  out.CheckFloatAbove("sampling.top_p", p.top_p, 0, 1);
  out.CheckInt("sampling.top_k", p.top_k, 0, limits.vocab_size);
  out.CheckFloat("sampling.min_p", p.min_p, 0, 1);
  out.CheckFloatAbove("sampling.repetition_penalty", p.repetition_penalty, 0, 10);
  out.CheckFloat("sampling.presence_penalty", p.presence_penalty, -2, 2);
  out.CheckFloat("sampling.frequency_penalty", p.frequency_penalty, -2, 2);
  CheckLogitBias(p, limits, out);
}

void CheckStop(const SamplingParams& p, size_t num_prompt_tokens, const ModelLimits& limits,
               Violations& out) {
  // A prompt that leaves no context is reported as such, not once more here.
  const int64_t context_left =
      std::max<int64_t>(1, limits.max_model_len - static_cast<int64_t>(num_prompt_tokens));
  out.CheckInt("stop.max_tokens", p.max_tokens, 1, context_left);
  out.CheckInt("stop.min_tokens", p.min_tokens, 0, std::max(p.max_tokens, 0));
  const auto& ids = p.stop_token_ids;
  out.CheckCount("stop.stop_token_ids", ids.size(), limits.max_stop_token_ids, "ids");
  CheckTokenIds("stop.stop_token_ids", ids, limits.vocab_size, out);
  const auto eos = std::find(ids.begin(), ids.end(), limits.eos_token_id);
  if (p.ignore_eos && eos != ids.end()) {
    out.Add("stop.ignore_eos",
            absl::StrFormat("must not be set when EOS (%d) is in stop.stop_token_ids[%d]",
                            limits.eos_token_id, eos - ids.begin()));
  }
}

}  // namespace

std::vector<FieldViolation> ValidateRequest(const std::vector<int32_t>& prompt_ids,
                                            const SamplingParams& params, int num_choices,
                                            const ModelLimits& limits) {
  Violations out;
  CheckPrompt(prompt_ids, limits, out);
  CheckSampling(params, num_choices, limits, out);
  CheckStop(params, prompt_ids.size(), limits, out);
  // -1 is what an unset field becomes.
  if (params.logprobs != -1) {
    out.CheckInt("output.logprobs", params.logprobs, 0, limits.max_logprobs);
  }
  return out.Take();
}

}  // namespace bough
