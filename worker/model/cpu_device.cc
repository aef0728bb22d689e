#include <chrono>
#include <cstdlib>
#include <cstring>

#include "worker/model/device.h"

namespace bough {
namespace {

constexpr int64_t kAlignment = 256;

class PassedEvent : public DeviceEvent {
 public:
  void Record() override {}
  void Wait() override {}
};

class WallTime : public TimeStamp {
 public:
  void Record() override { time_ = std::chrono::steady_clock::now(); }
  double MillisecondsSince(const TimeStamp& earlier) const override {
    const auto since = time_ - static_cast<const WallTime&>(earlier).time_;
    return std::chrono::duration<double, std::milli>(since).count();
  }

 private:
  std::chrono::steady_clock::time_point time_;
};

class CpuDevice : public Device {
 public:
  CpuDevice() : Device(&cpu::Table()) {}

  Stream stream() const override { return nullptr; }
  std::string name() const override { return "cpu"; }
  bool is_cuda() const override { return false; }

  // Pages are taken from the system when first written.
  void* Allocate(int64_t num_bytes) override {
    // aligned_alloc wants a multiple of the alignment; an empty buffer still has an address.
    return std::aligned_alloc(kAlignment, (num_bytes / kAlignment + 1) * kAlignment);
  }
  void Free(void* data) override { std::free(data); }
  void* AllocateHost(int64_t num_bytes) override { return Allocate(num_bytes); }
  void FreeHost(void* data) override { Free(data); }
  int64_t FreeBytes() const override { return 0; }
  int64_t TotalBytes() const override { return 0; }

  void CopyToDevice(void* dst, const void* src, int64_t num_bytes) override {
    std::memcpy(dst, src, num_bytes);
  }
  void CopyToHost(void* dst, const void* src, int64_t num_bytes) override {
    std::memcpy(dst, src, num_bytes);
  }
  void CopyRows(void* dst, int64_t dst_stride, const void* src, int64_t src_stride,
                int64_t row_bytes, int64_t num_rows) override {
    for (int64_t row = 0; row < num_rows; ++row) {
      std::memcpy(static_cast<char*>(dst) + row * dst_stride,
                  static_cast<const char*>(src) + row * src_stride, row_bytes);
    }
  }
  void Zero(void* data, int64_t num_bytes) override { std::memset(data, 0, num_bytes); }
  void Synchronize() override {}

  std::unique_ptr<DeviceEvent> NewEvent() override { return std::make_unique<PassedEvent>(); }
  std::unique_ptr<LaunchGraph> Capture(const std::function<void()>&) override { return nullptr; }
  bool IsCapturing() const override { return false; }
  std::unique_ptr<TimeStamp> NewTimeStamp() override { return std::make_unique<WallTime>(); }
};

}  // namespace

std::unique_ptr<Device> MakeCpuDevice() { return std::make_unique<CpuDevice>(); }

}  // namespace bough
