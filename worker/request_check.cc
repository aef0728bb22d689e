#include "worker/request_check.h"

#include <algorithm>
#include <limits>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "worker/sequence_blocks.h"

namespace bough {
namespace {

void CheckChoices(const Request& request, const ModelLimits& limits,
                  std::vector<FieldViolation>* out) {
  absl::flat_hash_set<int32_t> seen;
  for (size_t i = 0; i < request.choices.size(); ++i) {
    const ChoiceStart& choice = request.choices[i];
    if (choice.index < 0 || choice.index >= limits.max_n) {
      out->push_back(
          {absl::StrFormat("choices[%d].index", i),
           absl::StrFormat("must be in [0, %d], is %d", limits.max_n - 1, choice.index)});
    } else if (!seen.insert(choice.index).second) {
      out->push_back({absl::StrFormat("choices[%d].index", i),
                      absl::StrFormat("must not repeat, %d stands before", choice.index)});
    }
    if (static_cast<int64_t>(choice.emitted.size()) >= request.sampling.max_tokens) {
      out->push_back({absl::StrFormat("choices[%d].emitted_ids", i),
                      absl::StrFormat("must have at most max_tokens - 1 = %d tokens, has %d",
                                      request.sampling.max_tokens - 1, choice.emitted.size())});
    }
    const auto bad = std::find_if(choice.emitted.begin(), choice.emitted.end(),
                                  [&](int32_t id) { return id < 0 || id >= limits.vocab_size; });
    if (bad != choice.emitted.end()) {
      out->push_back(
          {absl::StrFormat("choices[%d].emitted_ids[%d]", i, bad - choice.emitted.begin()),
           absl::StrFormat("must be in [0, %d], is %d", limits.vocab_size - 1, *bad)});
    }
    if (!out->empty()) return;  // one is enough; there may be a thousand
  }
}

}  // namespace

std::vector<FieldViolation> CheckRequest(const Request& request, const ModelLimits& limits,
                                         int num_blocks) {
  const int num_choices =
      static_cast<int>(std::min<size_t>(request.choices.size(), std::numeric_limits<int>::max()));
  std::vector<FieldViolation> violations =
      ValidateRequest(request.prompt_ids, request.sampling, num_choices, limits);
  if (!violations.empty()) return violations;
  CheckChoices(request, limits, &violations);
  // The last token is never computed, so it needs no room.
  const int num_tokens =
      static_cast<int>(request.prompt_ids.size()) + request.sampling.max_tokens - 1;
  if (NumBlocks(num_tokens) > num_blocks) {
    violations.push_back(
        {"stop.max_tokens",
         absl::StrFormat("prompt and answer of %d + %d tokens need %d KV blocks of %d tokens, "
                         "this group has %d",
                         request.prompt_ids.size(), request.sampling.max_tokens,
                         NumBlocks(num_tokens), kBlockSize, num_blocks)});
  }
  return violations;
}

std::string JoinViolations(const std::vector<FieldViolation>& violations) {
  return absl::StrJoin(violations, "; ", [](std::string* out, const FieldViolation& v) {
    out->append(v.field).append(": ").append(v.description);
  });
}

}  // namespace bough
