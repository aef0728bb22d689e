#include "worker/seen_tokens.h"

#include <algorithm>

namespace bough {

std::vector<int32_t> SeenTokens::Distinct(std::span<const int32_t> prompt) {
  std::vector<int32_t> ids(prompt.begin(), prompt.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

void SeenTokens::Add(int32_t token, std::span<const int32_t> prompt) {
  const auto [it, is_new] = index_.try_emplace(token, static_cast<int32_t>(answer_.size()));
  if (is_new) {
    const auto at = std::lower_bound(prompt.begin(), prompt.end(), token);
    const bool in_prompt = at != prompt.end() && *at == token;
    answer_.push_back({token, 0, in_prompt ? static_cast<int32_t>(at - prompt.begin()) : -1});
  }
  ++answer_[it->second].count;
}

void SeenTokens::AppendTo(std::span<const int32_t> prompt, std::vector<int32_t>* ids,
                          std::vector<int32_t>* counts) const {
  const size_t begin = counts->size();
  ids->insert(ids->end(), prompt.begin(), prompt.end());
  counts->resize(begin + prompt.size(), 0);
  for (const Entry& e : answer_) {
    if (e.prompt_idx >= 0) {
      (*counts)[begin + e.prompt_idx] = e.count;
    } else {
      ids->push_back(e.token);
      counts->push_back(e.count);
    }
  }
}

}  // namespace bough
