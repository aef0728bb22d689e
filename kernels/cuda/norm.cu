// AddRmsNorm, alone and with the router behind it. One thread block a token; the row stays in
// registers from its load to its store, with two barriers in between: for the sum of squares, and
// for amax and the experts' logits together.
//
// With a router the blocks are few and take token after token, so that each loads its columns of up
// to 8 experts' weights (64 KiB at Mixtral's size) once, before it waits for the kernel in front.
#include <type_traits>

#include "kernels/cuda/rows.cuh"
#include "kernels/moe.h"

namespace bough::cuda {
namespace {

constexpr int kMaxExperts = 64;
constexpr int kMaxWarps = kMaxRowThreads / kWarpSize;
constexpr int kTileExperts = 8;         // whose logits are summed together
constexpr int kBlocksWithRouter = 264;  // 2 for each SM of an H200

// Residual elements [i, i + kVec) of token t after the addition, as stored.
template <typename T>
__device__ Vec AddToResidual(const AddRmsNormParams& p, int64_t t, int i) {
  T* residual = static_cast<T*>(p.residual) + t * p.hidden_size + i;
  Vec sum = LoadVec(residual);
  if (p.x == nullptr) return sum;
  const T* x = static_cast<const T*>(p.x);
  const Vec added = p.row_of_pair == nullptr
                        ? LoadVec(x + t * p.hidden_size + i)
                        : SumExpertRows(x, p.hidden_size, p.row_of_pair + t * p.top_k,
                                        p.expert_weights + t * p.top_k, p.top_k, i);
#pragma unroll
  for (int k = 0; k < kVec; ++k) sum.v[k] += added.v[k];
  StoreVec(residual, sum);
  return Rounded<T>(sum);
}

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

// The router's weights of experts [first, first + kTileExperts) in this thread's columns.
template <typename Gate, int kVecs>
struct GateTile {
  RawVec<Gate> w[kTileExperts][kVecs];

  __device__ void Load(const AddRmsNormGateParams& p, int first) {
#pragma unroll
    for (int e = 0; e < kTileExperts; ++e) {
#pragma unroll
      for (int c = 0; c < kVecs; ++c) {
        const int i = (c * blockDim.x + threadIdx.x) * kVec;
        if (first + e >= p.num_experts || i >= p.norm.hidden_size) continue;
        w[e][c] =
            LoadRaw(static_cast<const Gate*>(p.gate) + int64_t{first + e} * p.norm.hidden_size + i);
      }
    }
  }

  // This thread's part of the tile's logits, summed over its warp into `logits`.
  __device__ void AddUp(const Vec (&row)[kVecs], const AddRmsNormGateParams& p, int first,
                        float* logits) const {
    float sums[kTileExperts] = {};
#pragma unroll
    for (int e = 0; e < kTileExperts; ++e) {
      if (first + e >= p.num_experts) break;
#pragma unroll
      for (int c = 0; c < kVecs; ++c) {
        if (static_cast<int>(c * blockDim.x + threadIdx.x) * kVec >= p.norm.hidden_size) continue;
        const Vec gate = Widen(w[e][c]);
#pragma unroll
        for (int k = 0; k < kVec; ++k) sums[e] += row[c].v[k] * gate.v[k];
      }
    }
    const float sum = WarpSum8(sums);
    const int lane = threadIdx.x % kWarpSize;
    if (lane % 4 == 0 && first + lane / 4 < p.num_experts) logits[first + lane / 4] = sum;
  }
};

// Greater logits have greater keys, of equal ones the lower expert; NaN is the least. Never 0.
__device__ uint64_t GateKey(float logit, int expert) {
  const uint32_t bits = __float_as_uint(logit == 0 ? 0.0f : logit);  // -0 equals 0
  const uint32_t ordered = isnan(logit) ? 0u : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return uint64_t{ordered} << 32 | static_cast<uint32_t>(kMaxExperts - expert);
}

// One warp: top-k and softmax. A lane holds two experts' logits, `lane` and `lane` + 32.
__device__ void ChooseExperts(const float (&logits)[2], const AddRmsNormGateParams& p, int64_t t,
                              float* weights) {
  const int lane = threadIdx.x % kWarpSize;
  uint64_t keys[2];
  for (int i = 0; i < 2; ++i) {
    const int e = lane + i * kWarpSize;
    keys[i] = e < p.num_experts ? GateKey(logits[i], e) : 0;
  }
  float first = 0, sum = 0;
  for (int j = 0; j < p.top_k; ++j) {
    const uint64_t best = WarpReduce(keys[0] > keys[1] ? keys[0] : keys[1], Max{});
    const int expert = kMaxExperts - static_cast<int>(best & 0xffffffffu);
    const float logit =
        __shfl_sync(kFullWarp, expert < kWarpSize ? logits[0] : logits[1], expert % kWarpSize);
    if (j == 0) first = logit;
    const float weight = expf(logit - first);
    sum += weight;
    if (keys[0] == best) keys[0] = 0;
    if (keys[1] == best) keys[1] = 0;
    if (lane == 0) {
      p.expert_ids[t * p.top_k + j] = expert;
      weights[j] = weight;
    }
  }
  __syncwarp();
  for (int j = lane; j < p.top_k; j += kWarpSize) {
    p.expert_weights[t * p.top_k + j] = weights[j] / sum;
  }
}

// Gate: void without a router.
template <typename T, typename Out, typename Gate, int kVecs>
__global__ void __launch_bounds__(kMaxRowThreads) AddRmsNormKernel(AddRmsNormGateParams p) {
  constexpr bool kQuantize = std::is_same_v<Out, E4M3>;
  constexpr bool kHasRouter = !std::is_void_v<Gate>;
  __shared__ float squares[kMaxWarps], row_max[kMaxWarps];
  __shared__ float logits[kHasRouter ? kMaxWarps : 1][kMaxExperts];  // each warp's part
  __shared__ float expert_weights[kMaxExperts];
  const AddRmsNormParams& n = p.norm;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int num_warps = blockDim.x / kWarpSize;
  const auto column = [](int c) { return static_cast<int>(c * blockDim.x + threadIdx.x) * kVec; };

  Vec weight[kVecs];
#pragma unroll
  for (int c = 0; c < kVecs; ++c) {
    if (column(c) < n.hidden_size) weight[c] = LoadVec(n.weight + column(c));
  }
  [[maybe_unused]] GateTile<std::conditional_t<kHasRouter, Gate, float>, kVecs> tile;
  const bool one_tile = p.num_experts <= kTileExperts;
  if constexpr (kHasRouter) {
    if (one_tile) tile.Load(p, 0);
  }
  WaitForPrevious();
  AllowNext();

  for (int64_t t = blockIdx.x; t < n.num_tokens; t += gridDim.x) {
    Vec row[kVecs];
    float sum = 0;
#pragma unroll
    for (int c = 0; c < kVecs; ++c) {
      if (column(c) < n.hidden_size) row[c] = AddToResidual<T>(n, t, column(c));
#pragma unroll
      for (int k = 0; k < kVec; ++k) sum += row[c].v[k] * row[c].v[k];
    }
    sum = WarpReduce(sum, Add{});
    if (lane == 0) squares[warp] = sum;
    __syncthreads();  // also: the token before is done with row_max and logits
    sum = WarpReduce(lane < num_warps ? squares[lane] : 0.0f, Add{});
    const float rms_scale = 1.0f / sqrtf(sum / n.hidden_size + n.eps);

    float amax = 0;
#pragma unroll
    for (int c = 0; c < kVecs; ++c) {
#pragma unroll
      for (int k = 0; k < kVec; ++k) row[c].v[k] = row[c].v[k] * rms_scale * weight[c].v[k];
      amax = AbsMax(amax, row[c]);
    }
    if constexpr (kQuantize) {
      amax = WarpReduce(amax, Max{});
      if (lane == 0) row_max[warp] = amax;
    }
    if constexpr (kHasRouter) {
      Vec x[kVecs];
#pragma unroll
      for (int c = 0; c < kVecs; ++c) x[c] = Rounded<T>(row[c]);
      for (int first = 0; first < p.num_experts; first += kTileExperts) {
        if (!one_tile) tile.Load(p, first);
        tile.AddUp(x, p, first, logits[warp]);
      }
    }
    __syncthreads();  // also: all have read squares

    float inverse_scale = 1;
    if constexpr (kQuantize) {
      amax = WarpReduce(lane < num_warps ? row_max[lane] : 0.0f, Max{});
      inverse_scale = InverseScale(amax);
      if (threadIdx.x == 0) n.out_scale[t] = Scale(amax);
    }
    Out* out = static_cast<Out*>(n.out) + t * n.hidden_size;
#pragma unroll
    for (int c = 0; c < kVecs; ++c) {
      if (column(c) >= n.hidden_size) continue;
      StoreVec(out + column(c), kQuantize ? row[c] * inverse_scale : row[c]);
    }
    if constexpr (kHasRouter) {
      if (warp != 0) continue;
      float sums[2] = {};
      for (int w = 0; w < num_warps; ++w) {
        for (int i = 0; i < 2; ++i) {
          const int e = lane + i * kWarpSize;
          if (e < p.num_experts) sums[i] += logits[w][e];
        }
      }
      ChooseExperts(sums, p, t, expert_weights);
    }
  }
}

template <typename Gate>
void LaunchNorm(const AddRmsNormGateParams& p, Stream stream) {
  const AddRmsNormParams& n = p.norm;
  CHECK(n.out != n.residual) << "out may not alias residual";
  CHECK(n.out != n.x || (n.out_dtype == n.dtype && n.row_of_pair == nullptr))
      << "out may alias x where both have the same rows";
  if (n.num_tokens == 0) return;
  const RowConfig config = PickRowConfig(n.hidden_size);
  CHECK_LE(config.vecs_per_thread, 2) << "hidden_size is " << n.hidden_size;
  const int grid = std::is_void_v<Gate> ? n.num_tokens : std::min(n.num_tokens, kBlocksWithRouter);
  DispatchOut(n.dtype, n.out_dtype, "x", [&]<typename T, typename Out>() {
    const auto kernel = config.vecs_per_thread == 1 ? AddRmsNormKernel<T, Out, Gate, 1>
                                                    : AddRmsNormKernel<T, Out, Gate, 2>;
    Launch(kernel, grid, config.num_threads, 0, stream, p);
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
