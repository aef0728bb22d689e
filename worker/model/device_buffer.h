// Memory of a device, owned: weights, KV cache and activations live in these.
#pragma once

#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"
#include "kernels/dtype.h"
#include "worker/model/device.h"

namespace bough {

// Not initialised. Moves, never copies; the device outlives it.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  ~DeviceBuffer() { Reset(); }
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(num_bytes_, other.num_bytes_);
    return *this;
  }

  // RESOURCE_EXHAUSTED names `what` and the size.
  static absl::StatusOr<DeviceBuffer> Allocate(Device* device, int64_t num_bytes, const char* what);
  // For what is small beside weights and KV cache: scratch of `count` elements; dies when there is
  // none.
  static DeviceBuffer Scratch(Device* device, int64_t count, DType dtype);

  void* data() const { return data_; }
  int64_t num_bytes() const { return num_bytes_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void Reset();

  Device* device_ = nullptr;
  void* data_ = nullptr;
  int64_t num_bytes_ = 0;
};

}  // namespace bough
