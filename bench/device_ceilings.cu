#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "bench/device_ceilings.h"
#include "kernels/cuda/cuda_check.h"

namespace bough {
namespace {

constexpr int64_t kBytes = int64_t{4} << 30;
constexpr int kThreads = 512, kLoads = 8;
constexpr int kRuns = 6;

// Each thread keeps kLoads 16-byte loads in flight. Writes nothing unless the sum is one that zeros
// cannot give, so that the loads stay.
__global__ void __launch_bounds__(kThreads)
    ReadKernel(const uint4* data, int64_t count, uint4* sink) {
  uint4 sum = {};
  const int64_t stride = int64_t{gridDim.x} * kThreads * kLoads;
  for (int64_t at = int64_t{blockIdx.x} * kThreads * kLoads + threadIdx.x; at < count;
       at += stride) {
    uint4 v[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) v[i] = __ldcs(data + at + i * kThreads);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      sum.x |= v[i].x;
      sum.y |= v[i].y;
      sum.z |= v[i].z;
      sum.w |= v[i].w;
    }
  }
  if ((sum.x | sum.y | sum.z | sum.w) != 0) *sink = sum;
}

template <typename Launch>
double BestMilliseconds(const Launch& launch) {
  cudaEvent_t begin, end;
  CUDA_CHECK(cudaEventCreate(&begin));
  CUDA_CHECK(cudaEventCreate(&end));
  float best = 1e9f;
  for (int i = 0; i < kRuns; ++i) {
    CUDA_CHECK(cudaEventRecord(begin));
    launch();
    CUDA_CHECK(cudaGetLastError());
    CUDA_CHECK(cudaEventRecord(end));
    CUDA_CHECK(cudaEventSynchronize(end));
    float ms = 0;
    CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    best = std::min(best, ms);
  }
  CUDA_CHECK(cudaEventDestroy(begin));
  CUDA_CHECK(cudaEventDestroy(end));
  return best;
}

class Buffer {
 public:
  Buffer() {
    CUDA_CHECK(cudaMalloc(&data_, kBytes));
    CUDA_CHECK(cudaMemset(data_, 0, kBytes));
  }
  ~Buffer() { CUDA_CHECK(cudaFree(data_)); }
  char* data() const { return static_cast<char*>(data_); }

 private:
  void* data_ = nullptr;
};

}  // namespace

double MeasureDeviceReadGbps() {
  const Buffer buffer;
  int num_sms = 0, device = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device));
  auto* const data = reinterpret_cast<uint4*>(buffer.data());
  constexpr int64_t kCount = kBytes / sizeof(uint4);
  static_assert(kCount % (kThreads * kLoads) == 0, "the kernel reads whole tiles");
  double best = 1e9;
  for (int blocks_per_sm : {2, 4, 16}) {
    best = std::min(best, BestMilliseconds([&] {
                      ReadKernel<<<num_sms * blocks_per_sm, kThreads>>>(data, kCount, data);
                    }));
  }
  return kBytes / best * 1e-6;
}

double MeasureDeviceCopyGbps() {
  const Buffer buffer;
  constexpr int64_t kHalf = kBytes / 2;
  const double ms = BestMilliseconds([&] {
    CUDA_CHECK(cudaMemcpyAsync(buffer.data(), buffer.data() + kHalf, kHalf,
                               cudaMemcpyDeviceToDevice, nullptr));
  });
  return 2.0 * kHalf / ms * 1e-6;
}

}  // namespace bough
