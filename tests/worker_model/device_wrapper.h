// A CPU device of which a test changes one thing.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "worker/model/device.h"

namespace bough::testing {

class DeviceWrapper : public Device {
 public:
  DeviceWrapper() : Device(&cpu::Table()) {}
  Stream stream() const override { return cpu_->stream(); }
  std::string name() const override { return "test"; }
  bool is_cuda() const override { return false; }
  void* Allocate(int64_t num_bytes) override { return cpu_->Allocate(num_bytes); }
  void Free(void* data) override { cpu_->Free(data); }
  void* AllocateHost(int64_t num_bytes) override { return cpu_->AllocateHost(num_bytes); }
  void FreeHost(void* data) override { cpu_->FreeHost(data); }
  int64_t FreeBytes() const override { return cpu_->FreeBytes(); }
  int64_t TotalBytes() const override { return cpu_->TotalBytes(); }
  void CopyToDevice(void* dst, const void* src, int64_t num_bytes) override {
    cpu_->CopyToDevice(dst, src, num_bytes);
  }
  void CopyToHost(void* dst, const void* src, int64_t num_bytes) override {
    cpu_->CopyToHost(dst, src, num_bytes);
  }
  void CopyRows(void* dst, int64_t dst_stride, const void* src, int64_t src_stride,
                int64_t row_bytes, int64_t num_rows) override {
    cpu_->CopyRows(dst, dst_stride, src, src_stride, row_bytes, num_rows);
  }
  void Zero(void* data, int64_t num_bytes) override { cpu_->Zero(data, num_bytes); }
  void Synchronize() override { cpu_->Synchronize(); }
  std::unique_ptr<DeviceEvent> NewEvent() override { return cpu_->NewEvent(); }
  std::unique_ptr<LaunchGraph> Capture(const std::function<void()>& launch) override {
    return cpu_->Capture(launch);
  }
  bool IsCapturing() const override { return cpu_->IsCapturing(); }
  std::unique_ptr<TimeStamp> NewTimeStamp() override { return cpu_->NewTimeStamp(); }

 private:
  const std::unique_ptr<Device> cpu_ = MakeCpuDevice();
};

}  // namespace bough::testing
