// One thread block a row, which it reads three times (from L2 after the first): for amax, for the
// errors of all scales side by side in registers, and to write. Loading is bound by the host's bus.
#include "kernels/cuda/rows.cuh"
#include "kernels/elementwise.h"

namespace bough::cuda {
namespace {

constexpr int kThreads = 256;

__device__ float Step(int j) { return 1 + static_cast<float>(j) / kNumScaleSteps; }

template <typename T>
__global__ void __launch_bounds__(kThreads) QuantizeWeightsKernel(QuantizeParams p) {
  AllowNext();
  WaitForPrevious();
  const T* row = static_cast<const T*>(p.x) + int64_t{blockIdx.x} * p.size;
  E4M3* out = static_cast<E4M3*>(p.out) + int64_t{blockIdx.x} * p.size;

  float amax = 0;
  for (int i = threadIdx.x * kVec; i < p.size; i += kThreads * kVec) {
    amax = AbsMax(amax, LoadVec(row + i));
  }
  amax = BlockReduce(amax, Max{}, 0.0f);
  const float inverse = InverseScale(amax), scale = Scale(amax);

  float errors[kNumScaleSteps] = {};
  for (int i = threadIdx.x * kVec; i < p.size; i += kThreads * kVec) {
    const Vec x = LoadVec(row + i);
#pragma unroll
    for (int j = 0; j < kNumScaleSteps; ++j) {
#pragma unroll
      for (int k = 0; k < kVec; ++k) {
        const float value = ToFloat(FromFloat<E4M3>(x.v[k] * (inverse / Step(j))));
        const float difference = value * (scale * Step(j)) - x.v[k];
        errors[j] += difference * difference;
      }
    }
  }
  float best_step = 1, least_error = INFINITY;
#pragma unroll
  for (int j = 0; j < kNumScaleSteps; ++j) {
    const float error = BlockReduce(errors[j], Add{}, 0.0f);
    if (error < least_error) {
      least_error = error;
      best_step = Step(j);
    }
  }
  for (int i = threadIdx.x * kVec; i < p.size; i += kThreads * kVec) {
    StoreVec(out + i, LoadVec(row + i) * (inverse / best_step));
  }
  if (threadIdx.x == 0) p.scale[blockIdx.x] = scale * best_step;
}

}  // namespace

void QuantizeWeights(const QuantizeParams& p, Stream stream) {
  if (p.num_rows == 0) return;
  CHECK_LE(p.num_rows, INT32_MAX);
  CHECK_EQ(p.size % kVec, 0) << "rows have a multiple of " << kVec << " elements";
  DispatchDType(p.dtype, "x", [&]<typename T>() {
    Launch(QuantizeWeightsKernel<T>, static_cast<unsigned>(p.num_rows), kThreads, 0, stream, p);
  });
}

}  // namespace bough::cuda
