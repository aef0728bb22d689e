// Host memory (a mapped checkpoint) on its way to the device: several threads read ahead into a ring
// of pinned slots while one thread copies the slots to the device in order. A single thread reads
// page cache at a few GB/s, which is a tenth of what the bus takes.
#pragma once

#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "kernels/dtype.h"
#include "worker/model/device.h"

namespace bough {

// Rows of host memory, to become rows without gaps of `dtype`.
struct HostRows {
  const uint8_t* src = nullptr;  // first element; aligned to nothing
  int64_t stride_bytes = 0;      // from a row to the next
  int64_t num_rows = 0, num_cols = 0;
  DType src_dtype = DType::kF32, dtype = DType::kF32;  // equal, or of f32, bf16, f16 to f32, bf16

  int64_t num_bytes() const { return num_rows * num_cols * static_cast<int64_t>(SizeOf(dtype)); }
};

void Read(const HostRows& rows, void* out);
// Element i of `bytes`, of f32, bf16 or f16.
float Widen(DType dtype, const uint8_t* bytes, int64_t i);

// Called only from the thread that calls the device; the readers are its own.
class ReadAhead {
 public:
  // `rows` in the order in which Next gives them.
  ReadAhead(std::vector<HostRows> rows, Device* device);
  // Waits for the copies that were put on the stream.
  ~ReadAhead();
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  // The next rows, in pinned memory. Copies from there must be put on the stream before the
  // following call. REQUIRES: no more calls than rows.
  const void* Next();

 private:
  void ReadSlots();
  uint8_t* Slot(int64_t i) const { return slots_ + i % num_slots_ * slot_bytes_; }

  const std::vector<HostRows> rows_;
  Device* const device_;
  int64_t num_slots_ = 0, slot_bytes_ = 0;
  uint8_t* slots_ = nullptr;
  std::vector<std::unique_ptr<DeviceEvent>> copied_;  // by slot
  int64_t num_taken_ = 0;                             // by Next

  // rows_, as half-open ranges; number i goes through slot i % num_slots_:
  //   [0, num_released_)           on the device
  //   [num_released_, num_taken_)  being copied
  //   [num_taken_, num_begun_)     read or being read
  absl::Mutex mutex_;
  int64_t num_begun_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t num_released_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<bool> is_read_ ABSL_GUARDED_BY(mutex_);  // by rows
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> readers_;
};

}  // namespace bough
