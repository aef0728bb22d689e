// A device that has memory without end and runs nothing: what would be allocated on a real one is
// counted. The memory plan builds a model's scratch on it.
#pragma once

#include <string>

#include "worker/model/device.h"

namespace bough {

class CountingDevice : public Device {
 public:
  // `ops`: of the kind of device that is planned for; asked only for workspace sizes.
  CountingDevice(bool is_cuda, const Ops* ops) : Device(ops), is_cuda_(is_cuda) {}

  int64_t num_bytes() const { return num_bytes_; }

  Stream stream() const override { return nullptr; }
  std::string name() const override { return "memory plan"; }
  bool is_cuda() const override { return is_cuda_; }

  // Addresses that nobody uses.
  void* Allocate(int64_t num_bytes) override {
    constexpr int64_t kAlignment = 256;
    num_bytes_ += (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
    return this;
  }
  void Free(void*) override {}
  void* AllocateHost(int64_t) override { return this; }
  void FreeHost(void*) override {}
  int64_t FreeBytes() const override { return 0; }
  int64_t TotalBytes() const override { return 0; }
  void CopyToDevice(void*, const void*, int64_t) override {}
  void CopyToHost(void*, const void*, int64_t) override {}
  void CopyRows(void*, int64_t, const void*, int64_t, int64_t, int64_t) override {}
  void Zero(void*, int64_t) override {}
  void Synchronize() override {}
  std::unique_ptr<DeviceEvent> NewEvent() override { return nullptr; }
  bool IsCapturing() const override { return false; }
  std::unique_ptr<TimeStamp> NewTimeStamp() override { return nullptr; }
  std::unique_ptr<LaunchGraph> Capture(const std::function<void()>&) override { return nullptr; }

 private:
  const bool is_cuda_;
  int64_t num_bytes_ = 0;
};

}  // namespace bough
