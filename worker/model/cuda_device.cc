#include <cuda_runtime.h>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_check.h"
#include "worker/model/device.h"

namespace bough {
namespace {

class CudaGraph : public LaunchGraph {
 public:
  CudaGraph(cudaGraph_t graph, Stream stream) : stream_(stream) {
    CUDA_CHECK(cudaGraphInstantiate(&exec_, graph, 0));
    CUDA_CHECK(cudaGraphUpload(exec_, stream_));
  }
  ~CudaGraph() override { CUDA_CHECK(cudaGraphExecDestroy(exec_)); }

  void Launch() override { CUDA_CHECK(cudaGraphLaunch(exec_, stream_)); }

 private:
  const Stream stream_;
  cudaGraphExec_t exec_ = nullptr;
};

class CudaEvent : public DeviceEvent {
 public:
  explicit CudaEvent(Stream stream) : stream_(stream) {
    CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
  }
  ~CudaEvent() override { CUDA_CHECK(cudaEventDestroy(event_)); }

  void Record() override { CUDA_CHECK(cudaEventRecord(event_, stream_)); }
  void Wait() override { CUDA_CHECK(cudaEventSynchronize(event_)); }

 private:
  const Stream stream_;
  cudaEvent_t event_ = nullptr;
};

bool IsCapturingOn(Stream stream) {
  cudaStreamCaptureStatus status;
  CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
  return status == cudaStreamCaptureStatusActive;
}

class CudaTimeStamp : public TimeStamp {
 public:
  explicit CudaTimeStamp(Stream stream) : stream_(stream) { CUDA_CHECK(cudaEventCreate(&event_)); }
  ~CudaTimeStamp() override { CUDA_CHECK(cudaEventDestroy(event_)); }

  void Record() override {
    // External: in a graph it is a node that records, not an edge between two captures.
    const unsigned flags =
        IsCapturingOn(stream_) ? cudaEventRecordExternal : cudaEventRecordDefault;
    CUDA_CHECK(cudaEventRecordWithFlags(event_, stream_, flags));
  }
  double MillisecondsSince(const TimeStamp& earlier) const override {
    float ms = 0;
    CUDA_CHECK(
        cudaEventElapsedTime(&ms, static_cast<const CudaTimeStamp&>(earlier).event_, event_));
    return ms;
  }

 private:
  const Stream stream_;
  cudaEvent_t event_ = nullptr;
};

class CudaDevice : public Device {
 public:
  explicit CudaDevice(int index) : Device(&cuda::Table()), index_(index) {
    CUDA_CHECK(cudaSetDevice(index_));
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~CudaDevice() override { CUDA_CHECK(cudaStreamDestroy(stream_)); }

  Stream stream() const override { return stream_; }
  bool is_cuda() const override { return true; }
  std::string name() const override {
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, index_));
    return properties.name;
  }

  void* Allocate(int64_t num_bytes) override {
    void* data = nullptr;
    const cudaError_t error = cudaMalloc(&data, num_bytes + 1);  // + 1: empty ones have an address
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // this error is not sticky, only remembered
      return nullptr;
    }
    CUDA_CHECK(error);
    return data;
  }
  void Free(void* data) override { CUDA_CHECK(cudaFree(data)); }
  void* AllocateHost(int64_t num_bytes) override {
    void* data = nullptr;
    CUDA_CHECK(cudaMallocHost(&data, num_bytes + 1));
    return data;
  }
  void FreeHost(void* data) override { CUDA_CHECK(cudaFreeHost(data)); }
  int64_t FreeBytes() const override { return MemoryInfo().free; }
  int64_t TotalBytes() const override { return MemoryInfo().total; }

  void CopyToDevice(void* dst, const void* src, int64_t num_bytes) override {
    CUDA_CHECK(cudaMemcpyAsync(dst, src, num_bytes, cudaMemcpyHostToDevice, stream_));
  }
  void CopyToHost(void* dst, const void* src, int64_t num_bytes) override {
    CUDA_CHECK(cudaMemcpyAsync(dst, src, num_bytes, cudaMemcpyDeviceToHost, stream_));
  }
  void CopyRows(void* dst, int64_t dst_stride, const void* src, int64_t src_stride,
                int64_t row_bytes, int64_t num_rows) override {
    CUDA_CHECK(cudaMemcpy2DAsync(dst, dst_stride, src, src_stride, row_bytes, num_rows,
                                 cudaMemcpyDeviceToDevice, stream_));
  }
  void Zero(void* data, int64_t num_bytes) override {
    CUDA_CHECK(cudaMemsetAsync(data, 0, num_bytes, stream_));
  }
  void Synchronize() override { CUDA_CHECK(cudaStreamSynchronize(stream_)); }

  std::unique_ptr<DeviceEvent> NewEvent() override { return std::make_unique<CudaEvent>(stream_); }

  std::unique_ptr<LaunchGraph> Capture(const std::function<void()>& launch) override {
    CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    launch();
    cudaGraph_t graph = nullptr;
    CUDA_CHECK(cudaStreamEndCapture(stream_, &graph));
    auto captured = std::make_unique<CudaGraph>(graph, stream_);
    CUDA_CHECK(cudaGraphDestroy(graph));
    return captured;
  }
  bool IsCapturing() const override { return IsCapturingOn(stream_); }
  std::unique_ptr<TimeStamp> NewTimeStamp() override {
    return std::make_unique<CudaTimeStamp>(stream_);
  }

 private:
  struct Memory {
    size_t free = 0, total = 0;
  };
  Memory MemoryInfo() const {
    Memory memory;
    CUDA_CHECK(cudaMemGetInfo(&memory.free, &memory.total));
    return memory;
  }

  const int index_;
  Stream stream_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> OpenCudaDevice(int index) {
  int num_devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&num_devices);
  if (error != cudaSuccess) {
    return absl::UnavailableError(
        absl::StrCat("--device=cuda: no usable GPU: ", cudaGetErrorString(error)));
  }
  if (index >= num_devices) {
    return absl::UnavailableError(absl::StrCat("--device=cuda: this rank needs GPU ", index,
                                               ", the machine has ", num_devices));
  }
  int major = 0, minor = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
  CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
  if (major != 9 || minor != 0) {
    return absl::UnavailableError(absl::StrCat("--device=cuda: GPU ", index,
                                               " has compute capability ", major, ".", minor,
                                               ", the kernels need 9.0 (Hopper)"));
  }
  return std::make_unique<CudaDevice>(index);
}

}  // namespace bough
