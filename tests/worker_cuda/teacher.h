// Models led along given answers: each step they see the answer's token, not their own, so that one
// difference does not hide what follows.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "common/check.h"
#include "tests/worker_model/golden.h"
#include "tests/worker_model/hand_batch.h"
#include "worker/model/device.h"

namespace bough::testing {

// To be run at every position of every answer: `visit(batch, sequences)` gets a batch and, for each of
// its rows of logits in order, which sequence it is of.
using Visit = std::function<void(const Batch&, const std::vector<int>&)>;

// Prefills one by one, then decode steps of all sequences together, which share the nodes.
inline void LeadAlong(const std::vector<TokenIds>& prompts, const std::vector<TokenIds>& answers,
                      const std::vector<SharedNode>& nodes, int max_chunk, const Visit& visit) {
  const int num_steps = static_cast<int>(answers[0].size());
  int max_len = 0;
  std::vector<int> all;
  for (size_t seq = 0; seq < prompts.size(); ++seq) {
    max_len = std::max(max_len, static_cast<int>(prompts[seq].size()) + num_steps);
    all.push_back(static_cast<int>(seq));
  }
  HandBatches sequences(prompts, max_len);
  sequences.Share(nodes);
  for (int seq : all) {
    while (!sequences.IsPrefilled(seq)) {
      const Batch batch = sequences.Prefill(seq, max_chunk);
      visit(batch, std::vector<int>(batch.logits_tokens.size(), seq));
    }
    sequences.Append(seq, answers[seq][0]);
  }
  for (int step = 1; step < num_steps; ++step) {
    visit(sequences.Decode(), all);
    for (int seq : all) sequences.Append(seq, answers[seq][step]);
  }
}

// Share of the answers' positions where a model that is led along them would have said the same.
inline double ShareOfSameTokens(const std::vector<TokenIds>& prompts,
                                const std::vector<TokenIds>& answers, int max_chunk,
                                const std::function<StepResult(const Batch&)>& execute) {
  std::vector<size_t> next(answers.size(), 0);
  double num_same = 0, num_all = 0;
  LeadAlong(prompts, answers, {}, max_chunk, [&](const Batch& batch, const std::vector<int>& rows) {
    const StepResult result = execute(batch);
    for (size_t i = 0; i < rows.size(); ++i) {
      num_same += result.tokens[i] == answers[rows[i]][next[rows[i]]++];
      ++num_all;
    }
  });
  return num_same / num_all;
}

// The same `num_tokens` tokens go before every prompt.
inline void PrependText(const DemoGolden& golden, int num_tokens, std::vector<TokenIds>* prompts) {
  TokenIds text;
  for (const TokenIds& prompt : golden.logits_prompts) {
    text.insert(text.end(), prompt.begin(), prompt.end());
  }
  CHECK_GE(static_cast<int>(text.size()), num_tokens);
  text.resize(num_tokens);
  for (TokenIds& prompt : *prompts) prompt.insert(prompt.begin(), text.begin(), text.end());
}

// |a - b| / |b|.
inline double RelativeRms(const std::vector<float>& a, const std::vector<float>& b) {
  double delta = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    delta += (1.0 * a[i] - b[i]) * (1.0 * a[i] - b[i]);
    norm += 1.0 * b[i] * b[i];
  }
  return std::sqrt(delta / norm);
}

}  // namespace bough::testing
