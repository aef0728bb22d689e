// Memory in which weights, KV cache and activations live: the host's, for the CPU backend.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"

namespace bough {

// 64-byte aligned, not initialised; pages are taken from the system when first written. Moves,
// never copies.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;

  // RESOURCE_EXHAUSTED names `what` and the size.
  static absl::StatusOr<DeviceBuffer> Allocate(int64_t num_bytes, const char* what);
  // For what is small beside weights and KV cache: scratch of `count` elements; dies when there is
  // none.
  template <typename T>
  static DeviceBuffer Scratch(int64_t count) {
    return AllocateOrDie(count * static_cast<int64_t>(sizeof(T)));
  }

  void* data() const { return data_.get(); }
  int64_t num_bytes() const { return num_bytes_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_.get());
  }

 private:
  static DeviceBuffer AllocateOrDie(int64_t num_bytes);

  struct Free {
    void operator()(void* data) const;
  };
  std::unique_ptr<void, Free> data_;
  int64_t num_bytes_ = 0;
};

}  // namespace bough
