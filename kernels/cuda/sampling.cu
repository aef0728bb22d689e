// One thread block a row; the row's logits lie in shared memory, so the vocabulary is limited to
// what fits there. No sort: tokens have a total order (value, then lower id) as 64-bit keys, and
// top-k and top-p each are the largest key such that the keys from it on count, or weigh, enough;
// 64 rounds of bisection find it.
#include "kernels/cuda/device.cuh"
#include "kernels/philox.h"
#include "kernels/sampling.h"

namespace bough::cuda {
namespace {

constexpr int kThreads = 1024;

// Greater value first, then lower id: a greater key stands before. Keys of distinct tokens differ.
__device__ uint64_t Key(float value, int32_t id) {
  const uint32_t bits = __float_as_uint(value == 0 ? 0.0f : value);  // -0 equals 0
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return uint64_t{ordered} << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

__device__ int32_t IdOf(uint64_t key) { return static_cast<int32_t>(0xffffffffu - uint32_t(key)); }

// The greatest key of all tokens for which `is_in` holds; 0 when there is none.
template <typename IsIn>
__device__ uint64_t MaxKey(const float* values, int vocab_size, IsIn is_in) {
  uint64_t max = 0;
  for (int v = threadIdx.x; v < vocab_size; v += blockDim.x) {
    if (is_in(v)) max = Max{}(max, Key(values[v], v));
  }
  return BlockReduce(max, Max{}, uint64_t{0});
}

// Bias, penalties, bans. A NaN logit counts as banned.
__device__ void AdjustLogits(const SampleParams& p, const SamplingRow& row, float* logits) {
  const float* raw = p.logits + int64_t{row.logits_row} * p.vocab_size;
  for (int v = threadIdx.x; v < p.vocab_size; v += blockDim.x) {
    logits[v] = isnan(raw[v]) ? -INFINITY : raw[v];
  }
  __syncthreads();
  for (int i = row.bias_begin + threadIdx.x; i < row.bias_end; i += blockDim.x) {
    logits[p.bias_ids[i]] += p.bias_values[i];
  }
  __syncthreads();
  for (int i = row.seen_begin + threadIdx.x; i < row.seen_end; i += blockDim.x) {
    float& logit = logits[p.seen_ids[i]];
    logit = logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
    if (p.seen_counts[i] == 0) continue;
    logit -= row.presence_penalty + row.frequency_penalty * static_cast<float>(p.seen_counts[i]);
  }
  __syncthreads();
  for (int i = row.banned_begin + threadIdx.x; i < row.banned_end; i += blockDim.x) {
    logits[p.banned_ids[i]] = -INFINITY;
  }
  __syncthreads();
}

// The tokens still in the draw: values relative to the maximum, and keys from `threshold` on.
struct Candidates {
  const float* values;  // [vocab_size] (logit - max) / temperature; NaN = banned
  int vocab_size;
  uint64_t threshold = 0;

  __device__ bool Has(int v) const { return !isnan(values[v]) && Key(values[v], v) >= threshold; }

  // Sum of weight(value) over candidates whose key is at least `from`; the same in every thread,
  // and never less for a lower `from`.
  template <typename Weight>
  __device__ double Sum(uint64_t from, Weight weight) const {
    double sum = 0;
    for (int v = threadIdx.x; v < vocab_size; v += blockDim.x) {
      if (Has(v) && Key(values[v], v) >= from) sum += weight(values[v]);
    }
    return BlockReduce(sum, Add{}, 0.0);
  }

  // Keeps the fewest first candidates whose weights sum to `target` or more.
  template <typename Weight>
  __device__ void KeepUntil(double target, Weight weight) {
    uint64_t from = 0;
    for (uint64_t bit = uint64_t{1} << 63; bit != 0; bit >>= 1) {
      if (Sum(from | bit, weight) >= target) from |= bit;
    }
    threshold = Max{}(threshold, from);
  }
};

__device__ void KeepTopK(int top_k, Candidates& candidates) {
  if (top_k <= 0) return;
  candidates.KeepUntil(top_k, [](float) { return 1.0; });
}

__device__ void KeepTopP(float top_p, Candidates& candidates) {
  if (top_p >= 1) return;
  const auto probability = [](float value) { return double{expf(value)}; };
  candidates.KeepUntil(top_p * candidates.Sum(0, probability), probability);
}

// log u and ties as the CPU twin has them: double scores, the lower id first.
__device__ int32_t DrawByGumbelMax(const SamplingRow& row, const Candidates& candidates) {
  const float min_value = row.min_p > 0 ? logf(row.min_p) : -INFINITY;
  double best_score = -INFINITY;
  int32_t best = INT32_MAX;
  for (int v = threadIdx.x; v < candidates.vocab_size; v += blockDim.x) {
    if (!candidates.Has(v) || candidates.values[v] < min_value) continue;
    const auto bits = SamplingBits(row.seed, row.choice, row.position, v);
    const double score = candidates.values[v] - log(-log(UnitInterval(bits[v % 4])));
    if (score > best_score) {  // v ascends
      best_score = score;
      best = v;
    }
  }
  const double max_score = BlockReduce(best_score, Max{}, -double{INFINITY});
  const int32_t id = best_score == max_score ? best : INT32_MAX;
  return BlockReduce(
      id, [](int32_t a, int32_t b) { return b < a ? b : a; }, INT32_MAX);
}

// `logits` is shared memory for a row.
__device__ int32_t ChooseToken(const SampleParams& p, const SamplingRow& row, float* logits) {
  AdjustLogits(p, row, logits);
  const int32_t likeliest = IdOf(MaxKey(logits, p.vocab_size, [](int) { return true; }));
  const float max = logits[likeliest];
  if (row.temperature == 0 || max == -INFINITY) return likeliest;
  __syncthreads();  // all have read max
  for (int v = threadIdx.x; v < p.vocab_size; v += blockDim.x) {
    const float x = logits[v];
    logits[v] = x == -INFINITY ? NAN : x == max ? 0 : (x - max) / row.temperature;
  }
  __syncthreads();
  Candidates candidates = {logits, p.vocab_size};
  KeepTopK(row.top_k, candidates);
  KeepTopP(row.top_p, candidates);
  return DrawByGumbelMax(row, candidates);
}

__device__ void WriteLogprobs(const SampleParams& p, int r, int32_t token) {
  const SamplingRow& row = p.rows[r];
  const float* raw = p.logits + int64_t{row.logits_row} * p.vocab_size;
  uint64_t key = MaxKey(raw, p.vocab_size, [](int) { return true; });
  const float max = raw[IdOf(key)];
  double sum = 0;
  for (int v = threadIdx.x; v < p.vocab_size; v += blockDim.x) sum += expf(raw[v] - max);
  const double log_sum = log(BlockReduce(sum, Add{}, 0.0));
  const auto logprob = [&](float logit) {
    return static_cast<float>(double{logit} - max - log_sum);
  };
  if (threadIdx.x == 0) p.logprobs[r] = logprob(raw[token]);
  for (int i = 0; i < min(row.num_logprobs, p.max_top); ++i) {
    if (threadIdx.x == 0) {
      p.top_ids[int64_t{r} * p.max_top + i] = IdOf(key);
      p.top_logprobs[int64_t{r} * p.max_top + i] = logprob(raw[IdOf(key)]);
    }
    key = MaxKey(raw, p.vocab_size, [&](int v) { return Key(raw[v], v) < key; });
  }
}

__global__ void __launch_bounds__(kThreads) SampleKernel(SampleParams p) {
  extern __shared__ float logits[];  // [vocab_size]
  WaitForPrevious();
  AllowNext();
  const int r = blockIdx.x;
  const SamplingRow row = p.rows[r];
  const int32_t token = ChooseToken(p, row, logits);
  if (threadIdx.x == 0) p.tokens[r] = token;
  if (row.num_logprobs >= 0) WriteLogprobs(p, r, token);
}

// Of the 227 KiB that a thread block may have on sm_90, 3 KiB are left to the reductions.
constexpr int kMaxVocabSize = 224 * 1024 / sizeof(float);

}  // namespace

void Sample(const SampleParams& p, Stream stream) {
  if (p.num_rows == 0) return;
  CHECK(0 < p.vocab_size && p.vocab_size <= kMaxVocabSize)
      << "vocab_size must be in [1, " << kMaxVocabSize << "], is " << p.vocab_size;
  const int shared_bytes = p.vocab_size * sizeof(float);
  CUDA_CHECK(cudaFuncSetAttribute(SampleKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  shared_bytes));
  Launch(SampleKernel, p.num_rows, kThreads, shared_bytes, stream, p);
}

}  // namespace bough::cuda
