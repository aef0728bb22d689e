#include "worker/sequence.h"

#include <algorithm>
#include <array>
#include <utility>

#include "common/check.h"

namespace bough {
namespace {

bool HasPenalties(const SamplingParams& p) {
  return p.repetition_penalty != 1 || p.presence_penalty != 0 || p.frequency_penalty != 0;
}

}  // namespace

int Sequence::num_known() const {
  return static_cast<int>(request->request.prompt_ids.size() + output.size());
}

bool Sequence::is_full() const { return num_generated() >= request->request.sampling.max_tokens; }

void Sequence::CopyTokens(int begin, int end, int32_t* out) const {
  const std::vector<int32_t>& prompt = request->request.prompt_ids;
  const int num_prompt = static_cast<int>(prompt.size());
  CHECK(0 <= begin && begin <= end && end <= num_known()) << begin << ".." << end;
  if (begin < num_prompt) {
    out = std::copy(prompt.begin() + begin, prompt.begin() + std::min(end, num_prompt), out);
  }
  if (end > num_prompt) {
    const int skip = std::max(begin - num_prompt, 0);
    std::copy(output.begin() + skip, output.begin() + (end - num_prompt), out);
  }
}

const BlockHash& Sequence::Hash(int idx) {
  const int num_prompt = static_cast<int>(request->prompt_hashes.size());
  if (idx < num_prompt) return request->prompt_hashes[idx];
  std::array<int32_t, kBlockSize> tokens;
  while (static_cast<int>(output_hashes.size()) <= idx - num_prompt) {
    const int next = num_prompt + static_cast<int>(output_hashes.size());
    CopyTokens(next * kBlockSize, (next + 1) * kBlockSize, tokens.data());
    const BlockHash parent = next == 0 ? request->root : Hash(next - 1);
    output_hashes.push_back(NextHash(parent, tokens));
  }
  return output_hashes[idx - num_prompt];
}

void Sequence::Append(int32_t token) {
  output.push_back(token);
  if (request->has_penalties) seen.Add(token, request->prompt_vocabulary);
}

LiveRequest::LiveRequest(Request r, const BlockHash& root_hash, uint64_t arrival_order,
                         absl::Time submitted_at)
    : request(std::move(r)),
      root(root_hash),
      arrival(arrival_order),
      submitted(submitted_at),
      has_penalties(HasPenalties(request.sampling)),
      prompt_hashes(HashBlocks(root, request.prompt_ids)),
      prompt_vocabulary(has_penalties ? SeenTokens::Distinct(request.prompt_ids)
                                      : std::vector<int32_t>()),
      sequences(request.choices.size()),
      num_unfinished(static_cast<int>(request.choices.size())) {
  for (size_t i = 0; i < sequences.size(); ++i) {
    sequences[i].request = this;
    sequences[i].ordinal = static_cast<int32_t>(i);
    sequences[i].choice = request.choices[i].index;
    for (int32_t token : request.choices[i].emitted) sequences[i].Append(token);
  }
}

bool GoesBefore(const LiveRequest& a, const LiveRequest& b) {
  if (a.request.priority != b.request.priority) return a.request.priority > b.request.priority;
  return a.arrival < b.arrival;
}

bool GoesBefore(const Sequence& a, const Sequence& b) {
  if (a.request == b.request) return a.ordinal < b.ordinal;
  return GoesBefore(*a.request, *b.request);
}

}  // namespace bough
