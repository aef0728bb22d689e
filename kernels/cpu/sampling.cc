#include "kernels/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/check.h"
#include "kernels/cpu/parallel.h"
#include "kernels/philox.h"

namespace bough::cpu {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Candidate {
  float value;
  int32_t id;
};

// The order of all answers: value descending, ties to the lower id.
bool Before(const Candidate& a, const Candidate& b) {
  return a.value != b.value ? a.value > b.value : a.id < b.id;
}

const float* RawLogits(const SampleParams& p, const SamplingRow& row) {
  return p.logits + int64_t{row.logits_row} * p.vocab_size;
}

// Bias, penalties, bans. A NaN logit counts as banned, so that it is never drawn.
void AdjustLogits(const SampleParams& p, const SamplingRow& row, std::vector<float>& logits) {
  const float* raw = RawLogits(p, row);
  for (int v = 0; v < p.vocab_size; ++v) logits[v] = std::isnan(raw[v]) ? -kInf : raw[v];
  for (int i = row.bias_begin; i < row.bias_end; ++i) logits[p.bias_ids[i]] += p.bias_values[i];
  for (int i = row.seen_begin; i < row.seen_end; ++i) {
    float& logit = logits[p.seen_ids[i]];
    logit = logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
    if (p.seen_counts[i] == 0) continue;
    logit -= row.presence_penalty + row.frequency_penalty * static_cast<float>(p.seen_counts[i]);
  }
  for (int i = row.banned_begin; i < row.banned_end; ++i) logits[p.banned_ids[i]] = -kInf;
}

int32_t ArgMax(const std::vector<float>& logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// (logit - max) / temperature: 0 for the likeliest, however small the temperature, even if
// infinite.
void CollectCandidates(const std::vector<float>& logits, float temperature,
                       std::vector<Candidate>& candidates) {
  const float max = logits[ArgMax(logits)];
  candidates.clear();
  candidates.reserve(logits.size());
  for (int32_t v = 0; v < static_cast<int32_t>(logits.size()); ++v) {
    if (logits[v] == -kInf) continue;
    candidates.push_back({logits[v] == max ? 0 : (logits[v] - max) / temperature, v});
  }
}

void KeepTopK(int top_k, std::vector<Candidate>& candidates) {
  if (top_k <= 0 || top_k >= static_cast<int>(candidates.size())) return;
  std::nth_element(candidates.begin(), candidates.begin() + top_k, candidates.end(), Before);
  candidates.resize(top_k);
}

// The fewest likeliest candidates whose probabilities sum to top_p or more. A quickselect by mass:
// [0, begin) is kept and holds `kept`, the last one kept lies in [begin, end).
void KeepTopP(float top_p, std::vector<Candidate>& candidates) {
  if (top_p >= 1) return;
  const auto mass = [&](size_t begin, size_t end) {
    double sum = 0;
    for (size_t i = begin; i < end; ++i) sum += std::exp(candidates[i].value);
    return sum;
  };
  const double wanted = top_p * mass(0, candidates.size());
  double kept = 0;
  size_t begin = 0, end = candidates.size();
  while (end - begin > 1) {
    const size_t middle = begin + (end - begin) / 2;
    std::nth_element(candidates.begin() + begin, candidates.begin() + middle,
                     candidates.begin() + end, Before);
    const double upper_half = mass(begin, middle);
    if (kept + upper_half >= wanted) {
      end = middle;
    } else {
      kept += upper_half;
      begin = middle;
    }
  }
  candidates.resize(begin + 1);
}

// Those at least min_p times as likely as the likeliest, whose value is 0.
void KeepMinP(float min_p, std::vector<Candidate>& candidates) {
  if (min_p <= 0) return;
  const float threshold = std::log(min_p);
  std::erase_if(candidates, [&](const Candidate& c) { return c.value < threshold; });
}

int32_t DrawByGumbelMax(const SamplingRow& row, const std::vector<Candidate>& candidates) {
  double best_score = -kInf;
  int32_t best = -1;
  for (const Candidate& c : candidates) {
    const auto bits = SamplingBits(row.seed, row.choice, row.position, c.id);
    const double score = c.value - std::log(-std::log(UnitInterval(bits[c.id % 4])));
    if (score > best_score || (score == best_score && c.id < best)) {
      best_score = score;
      best = c.id;
    }
  }
  return best;
}

// Everything banned leaves no candidate: then the lowest id, as argmax has it.
int32_t ChooseToken(const SampleParams& p, const SamplingRow& row) {
  std::vector<float> logits(p.vocab_size);
  AdjustLogits(p, row, logits);
  if (row.temperature == 0) return ArgMax(logits);
  std::vector<Candidate> candidates;
  CollectCandidates(logits, row.temperature, candidates);
  if (candidates.empty()) return ArgMax(logits);
  KeepTopK(row.top_k, candidates);
  KeepTopP(row.top_p, candidates);
  KeepMinP(row.min_p, candidates);
  return DrawByGumbelMax(row, candidates);
}

// log(e^x_v / sum_u e^x_u), relative to the maximum so that nothing overflows or is absorbed.
struct LogSoftmax {
  LogSoftmax(const float* logits, int size) : max(*std::max_element(logits, logits + size)) {
    double sum = 0;
    for (int v = 0; v < size; ++v) sum += std::exp(logits[v] - max);
    log_sum = std::log(sum);
  }
  float operator()(float logit) const { return static_cast<float>(double{logit} - max - log_sum); }

  float max;
  double log_sum;
};

void WriteLogprobs(const SampleParams& p, int r) {
  const SamplingRow& row = p.rows[r];
  const float* raw = RawLogits(p, row);
  const LogSoftmax logprob(raw, p.vocab_size);
  p.logprobs[r] = logprob(raw[p.tokens[r]]);
  if (row.num_logprobs == 0) return;

  CHECK_LE(row.num_logprobs, std::min(p.max_top, p.vocab_size));
  std::vector<Candidate> all(p.vocab_size);
  for (int32_t v = 0; v < p.vocab_size; ++v) all[v] = {raw[v], v};
  std::partial_sort(all.begin(), all.begin() + row.num_logprobs, all.end(), Before);
  for (int i = 0; i < row.num_logprobs; ++i) {
    p.top_ids[int64_t{r} * p.max_top + i] = all[i].id;
    p.top_logprobs[int64_t{r} * p.max_top + i] = logprob(all[i].value);
  }
}

}  // namespace

void Sample(const SampleParams& p) {
  CHECK(p.num_rows == 0 || p.vocab_size > 0);
  // A row costs two logarithms and a Philox block per token, about 200 FLOPs' time.
  ParallelFor(p.num_rows, 200.0 * p.num_rows * p.vocab_size, [&](int r) {
    p.tokens[r] = ChooseToken(p, p.rows[r]);
    if (p.rows[r].num_logprobs >= 0) WriteLogprobs(p, r);
  });
}

}  // namespace bough::cpu
