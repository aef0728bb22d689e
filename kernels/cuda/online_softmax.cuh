// The running state of softmax(scores) V, held by one warp, and how it takes in keys.
//
//   (m, l, o): m = max score so far, l = sum e^(s - m), o = sum e^(s - m) v;   the answer is o / l
#pragma once

#include "kernels/cuda/device.cuh"

namespace bough::cuda {

// Keys that a warp takes in at once: one a lane.
inline constexpr int kChunkKeys = kWarpSize;

// o[i] of lane `lane` is element i * 32 + lane of the head. m and l are the same in all lanes.
// Empty: m = -inf, l = 0, o = 0.
template <int kHeadDim>
struct SoftmaxState {
  static_assert(kHeadDim % kWarpSize == 0, "lanes hold equal shares of the head");
  static constexpr int kPerLane = kHeadDim / kWarpSize;
  float m = -INFINITY, l = 0;
  float o[kPerLane] = {};
};

// Takes in keys [begin, end) of a chunk, 0 <= begin < end <= 32, for the query `q` (f32, scaled, in
// shared memory). Keys are rows of kHeadDim elements from k on, a multiple of 16 bytes;
// value_at(key, i) is element i of a value. Others than [begin, end) are not read.
template <int kHeadDim, typename KV, typename ValueAt>
__device__ void TakeIn(SoftmaxState<kHeadDim>& state, const float* q, const KV* k, ValueAt value_at,
                       int begin, int end) {
  const int lane = threadIdx.x % kWarpSize;
  float score = -INFINITY;
  if (begin <= lane && lane < end) {
    score = 0;
    const KV* key = k + lane * kHeadDim;
#pragma unroll
    for (int i = 0; i < kHeadDim; i += Pack<KV>::kSize) {
      const Pack<KV> part = LoadPack(key + i);
#pragma unroll
      for (int j = 0; j < Pack<KV>::kSize; ++j) score += q[i + j] * ToFloat(part.v[j]);
    }
  }
  const float m = fmaxf(state.m, WarpReduce(score, Max{}));
  const float rescale = expf(state.m - m);  // 0 for the empty state
  const float weight = expf(score - m);     // 0 for lanes without a key
  state.m = m;
  state.l = state.l * rescale + WarpReduce(weight, Add{});
#pragma unroll
  for (float& o : state.o) o *= rescale;
  for (int key = begin; key < end; ++key) {
    const float w = __shfl_sync(kFullWarp, weight, key);
#pragma unroll
    for (int i = 0; i < SoftmaxState<kHeadDim>::kPerLane; ++i) {
      state.o[i] += w * ToFloat(value_at(key, i * kWarpSize + lane));
    }
  }
}

// Adds to `state` what another warp made of other keys; `o` is the other's, in shared memory.
template <int kHeadDim>
__device__ void Merge(SoftmaxState<kHeadDim>& state, float m, float l, const float* o) {
  if (l == 0) return;
  const int lane = threadIdx.x % kWarpSize;
  const float max = fmaxf(state.m, m);
  const float mine = expf(state.m - max), theirs = expf(m - max);
  state.m = max;
  state.l = state.l * mine + l * theirs;
#pragma unroll
  for (int i = 0; i < SoftmaxState<kHeadDim>::kPerLane; ++i) {
    state.o[i] = state.o[i] * mine + o[i * kWarpSize + lane] * theirs;
  }
}

// The answer times v_scale; 0 for the empty state.
template <int kHeadDim, typename T>
__device__ void Store(const SoftmaxState<kHeadDim>& state, float v_scale, T* out) {
  const int lane = threadIdx.x % kWarpSize;
  const float scale = state.l > 0 ? v_scale / state.l : 0;
#pragma unroll
  for (int i = 0; i < SoftmaxState<kHeadDim>::kPerLane; ++i) {
    out[i * kWarpSize + lane] = FromFloat<T>(state.o[i] * scale);
  }
}

}  // namespace bough::cuda
