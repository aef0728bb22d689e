// Where a model lives and runs: a kind of memory, one stream that works in order, and the ops of
// that backend. The CPU backend is a device too, whose stream has run when a call returns.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/dtype.h"
#include "kernels/ops.h"
#include "kernels/stream.h"

namespace bough {

// Launches recorded once, to be put on the stream again and again.
class LaunchGraph {
 public:
  virtual ~LaunchGraph() = default;
  virtual void Launch() = 0;
};

// A point in the stream.
class DeviceEvent {
 public:
  virtual ~DeviceEvent() = default;
  virtual void Record() = 0;
  // Until the stream has passed the last Record; at once when there was none.
  virtual void Wait() = 0;
};

// A point in the stream whose time is measured. One recorded in a LaunchGraph is set anew by each of
// its launches.
class TimeStamp {
 public:
  virtual ~TimeStamp() = default;
  virtual void Record() = 0;
  // REQUIRES: the stream has passed both.
  virtual double MillisecondsSince(const TimeStamp& earlier) const = 0;
};

// Called only from the thread that runs batches, which during start-up is the loading thread.
// Errors of the device end the process (CUDA_CHECK); only allocation may fail.
class Device {
 public:
  explicit Device(const Ops* ops) : ops_(ops) {}
  virtual ~Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const Ops& ops() const { return *ops_; }
  // The same ops by another way, e.g. timed (op_times.h); `ops` outlives the device.
  void set_ops(const Ops* ops) { ops_ = ops; }
  virtual Stream stream() const = 0;
  virtual std::string name() const = 0;  // as the maker calls it
  virtual bool is_cuda() const = 0;
  // Of activations between ops: f32 on the CPU, bf16 on CUDA.
  DType activation_dtype() const { return is_cuda() ? DType::kBF16 : DType::kF32; }

  // 256-byte aligned, not initialised; nullptr when there is no room.
  virtual void* Allocate(int64_t num_bytes) = 0;
  virtual void Free(void* data) = 0;
  // Host memory that copies need not wait for.
  virtual void* AllocateHost(int64_t num_bytes) = 0;
  virtual void FreeHost(void* data) = 0;
  // Of this device, as seen by all processes; 0 where nobody counts (the CPU).
  virtual int64_t FreeBytes() const = 0;
  virtual int64_t TotalBytes() const = 0;

  // On the stream. Host memory from AllocateHost must stay as it is until the stream has passed;
  // other host memory makes the call wait.
  virtual void CopyToDevice(void* dst, const void* src, int64_t num_bytes) = 0;
  virtual void CopyToHost(void* dst, const void* src, int64_t num_bytes) = 0;
  // `num_rows` rows of `row_bytes`, the strides in bytes; within the device.
  virtual void CopyRows(void* dst, int64_t dst_stride, const void* src, int64_t src_stride,
                        int64_t row_bytes, int64_t num_rows) = 0;
  virtual void Zero(void* data, int64_t num_bytes) = 0;
  // Until the stream is empty.
  virtual void Synchronize() = 0;

  virtual std::unique_ptr<DeviceEvent> NewEvent() = 0;
  // What `launch` puts on the stream, recorded and not run. nullptr where nothing is gained by it
  // (the CPU): call `launch` itself.
  virtual std::unique_ptr<LaunchGraph> Capture(const std::function<void()>& launch) = 0;
  virtual bool IsCapturing() const = 0;
  virtual std::unique_ptr<TimeStamp> NewTimeStamp() = 0;

 private:
  const Ops* ops_;
};

std::unique_ptr<Device> MakeCpuDevice();
// GPU number `index` of this machine. UNAVAILABLE says what is missing: a GPU, the right kind of it
// (compute capability 9.0), or CUDA in this build.
absl::StatusOr<std::unique_ptr<Device>> OpenCudaDevice(int index);

}  // namespace bough
