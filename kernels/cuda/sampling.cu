// One thread block a row; the row's logits lie in shared memory, so the vocabulary is limited to
// what fits there. A greedy row that nothing adjusts is one pass over its logits and needs none.
//
// No sort: tokens have a total order (value, then lower id) as 64-bit keys, and top-k and top-p each
// are the largest key such that the keys from it on count, or weigh, enough. Bisection by value
// narrows it to a few tokens, which are then compared with each other. Weights are integers, so
// that sums do not depend on their order.
//
// The draw's logarithms are approximate; only where two scores are too close to tell apart does it
// compute them in double, as the CPU twin does.
#include "kernels/cuda/device.cuh"
#include "kernels/philox.h"
#include "kernels/sampling.h"

namespace bough::cuda {
namespace {

constexpr int kThreads = 1024;

// Greater value, greater number; -0 equals 0.
__device__ uint32_t Ordered(float value) {
  const uint32_t bits = __float_as_uint(value == 0 ? 0.0f : value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Greater value first, then lower id: a greater key stands before. Keys of distinct tokens differ.
__device__ uint64_t Key(float value, int32_t id) {
  return uint64_t{Ordered(value)} << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

__device__ int32_t IdOf(uint64_t key) { return static_cast<int32_t>(0xffffffffu - uint32_t(key)); }

// Calls visit(v, value) for a row of values in global memory, v ascending in each thread. Sixteen
// bytes a load and four loads a round, where rows allow it: a thread block alone has to keep its SM's
// share of memory busy.
template <typename Visit>
__device__ void ForEachLogit(const float* values, int vocab_size, Visit visit) {
  if (vocab_size % 4 != 0) {
    for (int v = threadIdx.x; v < vocab_size; v += blockDim.x) visit(v, values[v]);
    return;
  }
#pragma unroll 4
  for (int v = threadIdx.x * 4; v < vocab_size; v += blockDim.x * 4) {
    const Pack<float> pack = LoadPack(values + v);
#pragma unroll
    for (int i = 0; i < 4; ++i) visit(v + i, pack.v[i]);
  }
}

// The key of the greatest value that `for_each` visits with its token, ascending in each thread;
// NaN counts as -infinity.
template <typename ForEach>
__device__ uint64_t MaxKey(ForEach for_each) {
  float best = -INFINITY;
  int32_t id = -1;
  for_each([&](int v, float value) {
    if (value > best) {
      best = value;
      id = v;
    }
  });
  const uint64_t none = threadIdx.x == 0 ? Key(-INFINITY, 0) : 0;
  return BlockReduce(id < 0 ? none : Key(best, id), Max{}, uint64_t{0});
}

// The greatest key below `bound`; 0 when there is none.
__device__ uint64_t MaxKeyBelow(uint64_t bound, const float* values, int vocab_size) {
  uint64_t max = 0;
  for (int v = threadIdx.x; v < vocab_size; v += blockDim.x) {
    const uint64_t key = Key(values[v], v);
    if (key < bound) max = Max{}(max, key);
  }
  return BlockReduce(max, Max{}, uint64_t{0});
}

__device__ bool IsAdjusted(const SamplingRow& row) {
  return row.bias_begin < row.bias_end || row.seen_begin < row.seen_end ||
         row.banned_begin < row.banned_end;
}

// Bias, penalties, bans. A NaN logit counts as banned.
__device__ void AdjustLogits(const SampleParams& p, const SamplingRow& row, float* logits) {
  const float* raw = p.logits + int64_t{row.logits_row} * p.vocab_size;
  ForEachLogit(raw, p.vocab_size,
               [&](int v, float logit) { logits[v] = isnan(logit) ? -INFINITY : logit; });
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

constexpr int kMaxCompared = 256;
constexpr int kMaxRounds = 24;

// The tokens still in the draw: values relative to the maximum, and keys from `threshold` on.
struct Candidates {
  const float* values;  // [vocab_size] (logit - max) / temperature; NaN = banned
  int vocab_size;
  uint64_t threshold = 0;

  struct Total {
    uint64_t weight;
    int count;
  };

  // Calls visit(v, value) for the candidates with values in [low, high).
  template <typename Visit>
  __device__ void ForEach(float low, float high, Visit visit) const {
#pragma unroll 8
    for (int v = threadIdx.x; v < vocab_size; v += blockDim.x) {
      const float value = values[v];
      if (!(value >= low && value < high)) continue;  // NaN too
      if (threshold != 0 && Key(value, v) < threshold) continue;
      visit(v, value);
    }
  }

  // The same in every thread.
  template <typename Weight>
  __device__ Total SumBetween(float low, float high, Weight weight) const {
    Total total = {};
    ForEach(low, high, [&](int, float value) {
      total.weight += weight(value);
      ++total.count;
    });
    return {BlockReduce(total.weight, Add{}, uint64_t{0}), BlockReduce(total.count, Add{}, 0)};
  }

  // Keeps the fewest first candidates whose weights sum to `target` or more, or all.
  //   values in [high, ...)    weigh `weight_before` < target: kept
  //   values in [low, high)    about num_between; among them is the last to keep
  //   values in [..., low)     are not needed
  template <typename Weight>
  __device__ void KeepUntil(uint64_t target, Weight weight) {
    float low = -INFINITY, high = 1;  // no value is above 0
    uint64_t weight_before = 0;
    int num_between = vocab_size;
    for (int round = 0; round < kMaxRounds && num_between > kMaxCompared; ++round) {
      const float middle = isinf(low) ? 2 * high - 3 : 0.5f * (low + high);  // -1, -5, -13, ...
      const Total upper = SumBetween(middle, high, weight);
      if (weight_before + upper.weight >= target) {
        low = middle;
        num_between = upper.count;
      } else {
        high = middle;
        weight_before += upper.weight;
        num_between -= upper.count;
      }
    }
    const uint64_t last = num_between <= kMaxCompared
                              ? CompareAll(low, high, weight_before, target, weight)
                              : BisectKeys(target, weight);
    threshold = Max{}(threshold, last);
  }

  // The greatest key of values in [low, high) from which on the weights reach the target; 0 if they
  // never do. REQUIRES: at most kMaxCompared candidates there.
  template <typename Weight>
  __device__ uint64_t CompareAll(float low, float high, uint64_t weight_before, uint64_t target,
                                 Weight weight) const {
    __shared__ uint64_t keys[kMaxCompared], weights[kMaxCompared];
    __shared__ int size;
    if (threadIdx.x == 0) size = 0;
    __syncthreads();
    ForEach(low, high, [&](int v, float value) {
      const int i = atomicAdd(&size, 1);
      keys[i] = Key(value, v);
      weights[i] = weight(value);
    });
    __syncthreads();
    uint64_t found = 0;
    if (static_cast<int>(threadIdx.x) < size) {
      const uint64_t key = keys[threadIdx.x];
      uint64_t sum = weight_before;
      for (int j = 0; j < size; ++j) {
        if (keys[j] >= key) sum += weights[j];
      }
      if (sum >= target) found = key;
    }
    return BlockReduce(found, Max{}, uint64_t{0});
  }

  // The same of all keys, bit by bit: for many tokens of one value.
  template <typename Weight>
  __device__ uint64_t BisectKeys(uint64_t target, Weight weight) const {
    uint64_t from = 0;
    for (uint64_t bit = uint64_t{1} << 63; bit != 0; bit >>= 1) {
      uint64_t sum = 0;
      ForEach(-INFINITY, INFINITY, [&](int v, float value) {
        if (Key(value, v) >= (from | bit)) sum += weight(value);
      });
      if (BlockReduce(sum, Add{}, uint64_t{0}) >= target) from |= bit;
    }
    return from;
  }
};

__device__ void KeepTopK(int top_k, Candidates& candidates) {
  if (top_k <= 0 || top_k >= candidates.vocab_size) return;
  candidates.KeepUntil(top_k, [](float) { return uint64_t{1}; });
}

__device__ void KeepTopP(float top_p, Candidates& candidates) {
  if (top_p >= 1) return;
  // The likeliest's is 2^40: the sum of any vocabulary fits.
  const auto probability = [](float value) {
    return static_cast<uint64_t>(__float2ull_rn(expf(value) * 0x1p40f));
  };
  const uint64_t sum = candidates.SumBetween(-INFINITY, INFINITY, probability).weight;
  const double target = ceil(double{top_p} * static_cast<double>(sum));
  candidates.KeepUntil(Max{}(static_cast<uint64_t>(target), uint64_t{1}), probability);
}

// -log(-log u) for u = UnitInterval(bits), within 1e-4.
__device__ float ApproximateGumbel(uint32_t bits) {
  const float u = (static_cast<float>(bits) + 0.5f) * 0x1p-32f;
  const float x = (static_cast<float>(~bits) + 0.5f) * 0x1p-32f;  // 1 - u
  // Near 1 the logarithm's own series: u has lost the digits that count.
  const float minus_log = x < 0x1p-6f ? x * (1 + x * (0.5f + x * (1.0f / 3))) : -__logf(u);
  return -__logf(minus_log);
}

constexpr float kGumbelMargin = 1e-3f;
// The likeliest token is a candidate of value 0, and scores lie in value + (-3.2, 22.9): a token
// below this cannot win.
constexpr float kMinValueToWin = -27;

// Calls visit(v, bits) for the candidates that can win and the random bits of their draws; four
// neighbouring tokens share the bits' computation.
template <typename Visit>
__device__ void ForEachDraw(const SamplingRow& row, const Candidates& candidates, Visit visit) {
  const float min_value = fmaxf(kMinValueToWin, row.min_p > 0 ? logf(row.min_p) : -INFINITY);
  for (int first = threadIdx.x * 4; first < candidates.vocab_size; first += blockDim.x * 4) {
    unsigned in = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int v = first + i;
      if (v >= candidates.vocab_size) break;
      const float value = candidates.values[v];  // NaN fails
      const bool first_enough = candidates.threshold == 0 || Key(value, v) >= candidates.threshold;
      if (value >= min_value && first_enough) in |= 1u << i;
    }
    if (in == 0) continue;
    const auto bits = SamplingBits(row.seed, row.choice, row.position, first);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (in & (1u << i)) visit(first + i, bits[i]);
    }
  }
}

// Of the candidates whose approximate score is close to the best: double scores, the lower id
// first.
__device__ int32_t DrawExactly(const SamplingRow& row, const Candidates& candidates,
                               float min_score) {
  double best_score = -INFINITY;
  int32_t best = INT32_MAX;
  ForEachDraw(row, candidates, [&](int32_t v, uint32_t bits) {
    const float value = candidates.values[v];
    if (value + ApproximateGumbel(bits) < min_score) return;
    const double score = value - log(-log(UnitInterval(bits)));
    if (score > best_score) {  // v ascends
      best_score = score;
      best = v;
    }
  });
  const double max_score = BlockReduce(best_score, Max{}, -double{INFINITY});
  const int32_t id = best_score == max_score ? best : INT32_MAX;
  return -BlockReduce(-id, Max{}, -INT32_MAX);
}

__device__ int32_t DrawByGumbelMax(const SamplingRow& row, const Candidates& candidates) {
  float best_score = -INFINITY, second_score = -INFINITY;
  int32_t best = INT32_MAX;
  ForEachDraw(row, candidates, [&](int32_t v, uint32_t bits) {
    const float score = candidates.values[v] + ApproximateGumbel(bits);
    if (score > best_score) {
      second_score = best_score;
      best_score = score;
      best = v;
    } else {
      second_score = fmaxf(second_score, score);
    }
  });
  const float min_score = BlockReduce(best_score, Max{}, -INFINITY) - kGumbelMargin;
  const int num_close = (best_score >= min_score) + (second_score >= min_score);
  if (BlockReduce(num_close, Add{}, 0) > 1) return DrawExactly(row, candidates, min_score);
  return -BlockReduce(best_score >= min_score ? -best : -INT32_MAX, Max{}, -INT32_MAX);
}

// `logits` is shared memory for a row.
__device__ int32_t ChooseToken(const SampleParams& p, const SamplingRow& row, float* logits) {
  if (row.temperature == 0 && !IsAdjusted(row)) {
    const float* raw = p.logits + int64_t{row.logits_row} * p.vocab_size;
    return IdOf(MaxKey([&](auto visit) { ForEachLogit(raw, p.vocab_size, visit); }));
  }
  AdjustLogits(p, row, logits);
  const int32_t likeliest = IdOf(MaxKey([&](auto visit) {
#pragma unroll 8
    for (int v = threadIdx.x; v < p.vocab_size; v += blockDim.x) visit(v, logits[v]);
  }));
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
  uint64_t key = MaxKey([&](auto visit) { ForEachLogit(raw, p.vocab_size, visit); });
  const float max = raw[IdOf(key)];
  double sum = 0;
  for (int v = threadIdx.x; v < p.vocab_size; v += blockDim.x) sum += expf(raw[v] - max);
  const double log_sum = log(BlockReduce(sum, Add{}, 0.0));
  const auto logprob = [&](float logit) {
    return static_cast<float>(double{logit} - max - log_sum);
  };
  if (threadIdx.x == 0) p.logprobs[r] = logprob(raw[token]);
  for (int i = 0; i < min(row.num_logprobs, min(p.max_top, p.vocab_size)); ++i) {
    if (threadIdx.x == 0) {
      p.top_ids[int64_t{r} * p.max_top + i] = IdOf(key);
      p.top_logprobs[int64_t{r} * p.max_top + i] = logprob(raw[IdOf(key)]);
    }
    key = MaxKeyBelow(key, raw, p.vocab_size);
  }
}

__global__ void __launch_bounds__(kThreads) SampleKernel(SampleParams p) {
  extern __shared__ float logits[];  // [vocab_size]
  AllowNext();
  WaitForPrevious();
  const int r = blockIdx.x;
  const SamplingRow row = p.rows[r];
  const int32_t token = ChooseToken(p, row, logits);
  if (threadIdx.x == 0) p.tokens[r] = token;
  if (row.num_logprobs >= 0) WriteLogprobs(p, r, token);
}

// Of the 227 KiB that a thread block may have on sm_90, 11 KiB are left to the reductions.
constexpr int kMaxVocabSize = 216 * 1024 / sizeof(float);

}  // namespace

void Sample(const SampleParams& p, Stream stream) {
  if (p.num_rows == 0) return;
  CHECK(0 < p.vocab_size && p.vocab_size <= kMaxVocabSize)
      << "vocab_size must be in [1, " << kMaxVocabSize << "], is " << p.vocab_size;
  const int shared_bytes = CeilDiv(p.vocab_size, 4) * 16;  // loads of four may pass the end
  CUDA_CHECK(cudaFuncSetAttribute(SampleKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  shared_bytes));
  Launch(SampleKernel, p.num_rows, kThreads, shared_bytes, stream, p);
}

}  // namespace bough::cuda
