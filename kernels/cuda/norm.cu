// AddRmsNorm, alone and with the router behind it. One thread block a token; the row stays in
// registers from its load to its store, with two barriers in between: for the sum of squares, and
// for amax and the experts' logits together.
//
// The router's weights (64 KiB for Mixtral's 8 experts) are read before the kernel in front is waited
// for, and stay in registers. Where there are more tokens than SMs, two thread blocks an SM take two
// tokens at a time instead and read the weights from L1 for each two: the registers then hold
// enough rows to keep memory busy.
#include <type_traits>

#include "kernels/cuda/rows.cuh"
#include "kernels/moe.h"

namespace bough::cuda {
namespace {

constexpr int kMaxThreads = 512;
constexpr int kMaxWarps = kMaxThreads / kWarpSize;
constexpr int kMaxExperts = 64;
constexpr int kTileExperts = 8;  // whose logits are summed together
constexpr int kNumSms = 132;     // of an H200

// What is added to the residual's elements [i, i + kVec) of token t.
template <typename T, bool kPairs>
__device__ Vec Added(const AddRmsNormParams& p, int64_t t, int i) {
  const T* x = static_cast<const T*>(p.x);
  if constexpr (!kPairs) return LoadVec(x + t * p.hidden_size + i);
  return SumExpertRows(x, p.hidden_size, p.row_of_pair + t * p.top_k,
                       p.expert_weights + t * p.top_k, p.top_k, i);
}

// The rows of kBatch tokens, of which a thread has the columns that `column` says. All are loaded
// before the first is stored. Rows past the last token are the last token's.
template <typename T, int kVecs, int kBatch>
struct Rows {
  Vec v[kBatch][kVecs];

  template <typename Column, typename AddTo>
  __device__ void Load(const AddRmsNormParams& p, int64_t first_token, Column column,
                       AddTo add_to) {
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int64_t t = min(first_token + b, int64_t{p.num_tokens} - 1);
#pragma unroll
      for (int c = 0; c < kVecs; ++c) {
        const int i = column(c);
        if (i >= p.hidden_size) continue;
        v[b][c] = LoadVec(static_cast<const T*>(p.residual) + t * p.hidden_size + i);
        add_to(v[b][c], t, i);
      }
    }
  }

  // The residual after the addition, as stored.
  template <typename Column>
  __device__ void AddToResidual(const AddRmsNormParams& p, int64_t first_token, Column column) {
    const auto plus = [](Vec& sum, const Vec& added) {
#pragma unroll
      for (int k = 0; k < kVec; ++k) sum.v[k] += added.v[k];
    };
    if (p.x == nullptr) return Load(p, first_token, column, [](Vec&, int64_t, int) {});
    if (p.row_of_pair == nullptr) {
      Load(p, first_token, column,
           [&](Vec& sum, int64_t t, int i) { plus(sum, Added<T, false>(p, t, i)); });
    } else {
      Load(p, first_token, column,
           [&](Vec& sum, int64_t t, int i) { plus(sum, Added<T, true>(p, t, i)); });
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (first_token + b >= p.num_tokens) break;
#pragma unroll
      for (int c = 0; c < kVecs; ++c) {
        const int i = column(c);
        if (i >= p.hidden_size) continue;
        StoreVec(static_cast<T*>(p.residual) + (first_token + b) * p.hidden_size + i, v[b][c]);
        v[b][c] = Rounded<T>(v[b][c]);
      }
    }
  }
};

// Sums each of 8 values over the warp: lane l gets the sum of value l / 4. Each step halves the
// values that a lane still carries: 9 shuffles instead of 40.
__device__ inline float WarpSum8(float (&x)[8]) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int half = 4; half > 0; half /= 2) {
    const bool upper = lane & (4 * half);
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float sent = upper ? x[i] : x[i + half], kept = upper ? x[i + half] : x[i];
      x[i] = kept + __shfl_xor_sync(kFullWarp, sent, 4 * half);
    }
  }
  x[0] += __shfl_xor_sync(kFullWarp, x[0], 2);
  return x[0] + __shfl_xor_sync(kFullWarp, x[0], 1);
}

// The router's weights of the first kTileExperts experts in this thread's columns.
template <typename Gate, int kVecs>
struct GateTile {
  RawVec<Gate> w[kTileExperts][kVecs];
};

template <typename Gate>
__device__ RawVec<Gate> LoadGate(const AddRmsNormGateParams& p, int expert, int i) {
  return LoadRaw(static_cast<const Gate*>(p.gate) + int64_t{expert} * p.norm.hidden_size + i);
}

// This thread's part of the logits of experts [first, first + kTileExperts), summed over its warp
// into parts[b][warp]. gate(e, c): the weights of expert first + e in column c; anything where that
// expert does not exist, or where the column does not and the row is 0.
template <typename T, int kVecs, int kBatch, typename GateOf>
__device__ void AddUpLogits(const Rows<T, kVecs, kBatch>& rows, const AddRmsNormGateParams& p,
                            int first, GateOf gate, float (*parts)[kMaxWarps][kMaxExperts]) {
  float sums[kBatch][kTileExperts] = {};
#pragma unroll
  for (int c = 0; c < kVecs; ++c) {
    Vec x[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) x[b] = Rounded<T>(rows.v[b][c]);
#pragma unroll
    for (int e = 0; e < kTileExperts; ++e) {
      const Vec w = Widen(gate(e, c));
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
#pragma unroll
        for (int k = 0; k < kVec; ++k) sums[b][e] += x[b].v[k] * w.v[k];
      }
    }
  }
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int b = 0; b < kBatch; ++b) {
    const float sum = WarpSum8(sums[b]);
    if (lane % 4 == 0 && first + lane / 4 < p.num_experts) {
      parts[b][warp][first + lane / 4] = sum;
    }
  }
}

// Greater logits have greater numbers, -0 equals 0, NaN is the least.
__device__ uint32_t Ordered(float logit) {
  const uint32_t bits = __float_as_uint(logit == 0 ? 0.0f : logit);
  return isnan(logit) ? 0u : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// One warp: sums up the warps' parts of token t's logits, and chooses. A lane holds two experts,
// `lane` and `lane` + 32.
__device__ void ChooseExperts(const float (*parts)[kMaxExperts], const AddRmsNormGateParams& p,
                              int64_t t) {
  const int lane = threadIdx.x % kWarpSize, num_warps = blockDim.x / kWarpSize;
  float logits[2] = {};
  for (int first = 0; first < p.num_experts; first += kTileExperts) {
    const int e = first + lane % kTileExperts;  // by 4 lanes, each a quarter of the warps
    float sum = 0;
    if (e < p.num_experts) {
#pragma unroll 4
      for (int w = lane / kTileExperts; w < num_warps; w += kWarpSize / kTileExperts) {
        sum += parts[w][e];
      }
    }
    sum += __shfl_xor_sync(kFullWarp, sum, 8);
    sum += __shfl_xor_sync(kFullWarp, sum, 16);
    if (e == lane) logits[0] = sum;
    if (e == lane + kWarpSize) logits[1] = sum;
  }
  const uint32_t ordered[2] = {Ordered(logits[0]), Ordered(logits[1])};
  bool in[2] = {lane < p.num_experts, lane + kWarpSize < p.num_experts};
  int32_t ids[2];
  float weights[2], first = 0, sum = 0;
  for (int j = 0; j < p.top_k; ++j) {
    const uint32_t best =
        __reduce_max_sync(kFullWarp, max(in[0] ? ordered[0] : 0u, in[1] ? ordered[1] : 0u));
    const unsigned lower = __ballot_sync(kFullWarp, in[0] && ordered[0] == best);
    const unsigned upper = __ballot_sync(kFullWarp, in[1] && ordered[1] == best);
    const int from = __ffs(lower != 0 ? lower : upper) - 1;
    const float logit = __shfl_sync(kFullWarp, lower != 0 ? logits[0] : logits[1], from);
    if (j == 0) first = logit;
    const float weight = expf(logit - first);
    sum += weight;
    if (lane == from) (lower != 0 ? in[0] : in[1]) = false;
    if (lane == j % kWarpSize) {
      ids[j < kWarpSize ? 0 : 1] = lower != 0 ? from : from + kWarpSize;
      weights[j < kWarpSize ? 0 : 1] = weight;
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int j = lane + i * kWarpSize;
    if (j >= p.top_k) continue;
    p.expert_ids[t * p.top_k + j] = ids[i];
    p.expert_weights[t * p.top_k + j] = weights[i] / sum;
  }
}

// Thread blocks that an SM is to hold at once: what the registers allow without spilling.
constexpr int BlocksPerSm(bool has_router, int num_vecs, int batch) {
  return batch > 1 ? 2 : has_router || num_vecs > 1 ? 1 : 3;
}

// Gate: void without a router.
template <typename T, typename Out, typename Gate, int kVecs, int kBatch>
__global__ void __launch_bounds__(kMaxThreads, BlocksPerSm(!std::is_void_v<Gate>, kVecs, kBatch))
    AddRmsNormKernel(AddRmsNormGateParams p) {
  constexpr bool kQuantize = std::is_same_v<Out, E4M3>;
  constexpr bool kHasRouter = !std::is_void_v<Gate>;
  __shared__ float squares[kBatch][kMaxWarps], row_max[kBatch][kMaxWarps];
  __shared__ float logits[kHasRouter ? kBatch : 1][kHasRouter ? kMaxWarps : 1][kMaxExperts];
  const AddRmsNormParams& n = p.norm;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int num_warps = blockDim.x / kWarpSize;
  const auto column = [](int c) { return static_cast<int>(c * blockDim.x + threadIdx.x) * kVec; };

  const auto load_weight = [&](int c) {
    return column(c) < n.hidden_size ? LoadVec(n.weight + column(c)) : Vec{};
  };
  Vec weight[kVecs];
  if constexpr (kBatch == 1) {
#pragma unroll
    for (int c = 0; c < kVecs; ++c) weight[c] = load_weight(c);
  }
  // Resident: read once, and before the kernel in front is waited for.
  constexpr bool kResident = kHasRouter && kBatch == 1;
  using GateType = std::conditional_t<kHasRouter, Gate, float>;
  [[maybe_unused]] GateTile<GateType, kVecs> tile;
  if constexpr (kResident) {
#pragma unroll
    for (int e = 0; e < kTileExperts; ++e) {
#pragma unroll
      for (int c = 0; c < kVecs; ++c) {
        tile.w[e][c] = {};
        const bool in = e < p.num_experts && column(c) < n.hidden_size;
        if (in) tile.w[e][c] = LoadGate<GateType>(p, e, column(c));
      }
    }
  }
  AllowNext();
  WaitForPrevious();

  for (int64_t first_token = int64_t{blockIdx.x} * kBatch; first_token < n.num_tokens;
       first_token += int64_t{gridDim.x} * kBatch) {
    Rows<T, kVecs, kBatch> rows;
    rows.AddToResidual(n, first_token, column);
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      float sum = 0;
#pragma unroll
      for (int c = 0; c < kVecs; ++c) {
#pragma unroll
        for (int k = 0; k < kVec; ++k) sum += rows.v[b][c].v[k] * rows.v[b][c].v[k];
      }
      sum = WarpReduce(sum, Add{});
      if (lane == 0) squares[b][warp] = sum;
    }
    __syncthreads();  // also: the tokens before are done with row_max and logits

    if constexpr (kBatch > 1) {
#pragma unroll
      for (int c = 0; c < kVecs; ++c) weight[c] = load_weight(c);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const float sum = WarpReduce(lane < num_warps ? squares[b][lane] : 0.0f, Add{});
      const float rms_scale = 1.0f / sqrtf(sum / n.hidden_size + n.eps);
      float amax = 0;
#pragma unroll
      for (int c = 0; c < kVecs; ++c) {
        Vec& x = rows.v[b][c];
#pragma unroll
        for (int k = 0; k < kVec; ++k) x.v[k] = x.v[k] * rms_scale * weight[c].v[k];
        amax = AbsMax(amax, x);
      }
      if constexpr (kQuantize) {
        amax = WarpReduce(amax, Max{});
        if (lane == 0) row_max[b][warp] = amax;
      }
    }
    if constexpr (kHasRouter) {
      if constexpr (kResident) {
        AddUpLogits(
            rows, p, 0, [&](int e, int c) { return tile.w[e][c]; }, logits);
      }
      for (int first = kResident ? kTileExperts : 0; first < p.num_experts; first += kTileExperts) {
        const auto gate = [&](int e, int c) {
          return LoadGate<Gate>(p, min(first + e, p.num_experts - 1),
                                column(c) < n.hidden_size ? column(c) : 0);
        };
        AddUpLogits(rows, p, first, gate, logits);
      }
    }
    __syncthreads();  // also: all have read squares

#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int64_t t = first_token + b;
      if (t >= n.num_tokens) break;
      float inverse_scale = 1;
      if constexpr (kQuantize) {
        const float amax = WarpReduce(lane < num_warps ? row_max[b][lane] : 0.0f, Max{});
        inverse_scale = InverseScale(amax);
        if (threadIdx.x == 0) n.out_scale[t] = Scale(amax);
      }
      Out* out = static_cast<Out*>(n.out) + t * n.hidden_size;
#pragma unroll
      for (int c = 0; c < kVecs; ++c) {
        if (column(c) >= n.hidden_size) continue;
        StoreVec(out + column(c), kQuantize ? rows.v[b][c] * inverse_scale : rows.v[b][c]);
      }
    }
    if constexpr (kHasRouter) {
      for (int b = warp; b < kBatch && first_token + b < n.num_tokens; b += num_warps) {
        ChooseExperts(logits[b], p, first_token + b);
      }
    }
  }
}

template <typename Gate>
void LaunchNorm(const AddRmsNormGateParams& p, Stream stream) {
  constexpr bool kHasRouter = !std::is_void_v<Gate>;
  const AddRmsNormParams& n = p.norm;
  CHECK(n.out != n.residual) << "out may not alias residual";
  CHECK(n.out != n.x || (n.out_dtype == n.dtype && n.row_of_pair == nullptr))
      << "out may alias x where both have the same rows";
  if (n.num_tokens == 0) return;
  const RowConfig config = PickRowConfig(n.hidden_size, kMaxThreads);
  CHECK_LE(config.vecs_per_thread, 2) << "hidden_size is " << n.hidden_size;
  DispatchOut(n.dtype, n.out_dtype, "x", [&]<typename T, typename Out>() {
    const auto launch = [&](auto kernel, int batch) {
      const int num_batches = CeilDiv(n.num_tokens, batch);
      Launch(kernel, kHasRouter ? std::min(num_batches, 2 * kNumSms) : num_batches,
             config.num_threads, 0, stream, p);
    };
    if (config.vecs_per_thread == 2) return launch(AddRmsNormKernel<T, Out, Gate, 2, 1>, 1);
    if constexpr (kHasRouter) {
      if (n.num_tokens > kNumSms) return launch(AddRmsNormKernel<T, Out, Gate, 1, 2>, 2);
    }
    launch(AddRmsNormKernel<T, Out, Gate, 1, 1>, 1);
  });
}

}  // namespace

void AddRmsNorm(const AddRmsNormParams& p, Stream stream) { LaunchNorm<void>({.norm = p}, stream); }

void AddRmsNormGate(const AddRmsNormGateParams& p, Stream stream) {
  CHECK(1 <= p.top_k && p.top_k <= p.num_experts && p.num_experts <= kMaxExperts)
      << p.top_k << " of " << p.num_experts;
  DispatchDType(p.gate_dtype, "gate", [&]<typename Gate>() { LaunchNorm<Gate>(p, stream); });
}

}  // namespace bough::cuda
