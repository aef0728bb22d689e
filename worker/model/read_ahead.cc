#include "worker/model/read_ahead.h"

#include <sched.h>

#include <algorithm>
#include <cstring>

#include "common/check.h"

namespace bough {
namespace {

constexpr int64_t kMaxSlots = 16;
constexpr int64_t kSlotAlignment = 256;  // bytes
// More readers than this do not make the bus faster.
constexpr int64_t kMaxReaders = 12;

int64_t NumReaders(int64_t num_rows) {
  cpu_set_t cpus;
  const int64_t num_cores = sched_getaffinity(0, sizeof(cpus), &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
  return std::min({num_cores, kMaxReaders, num_rows});
}

}  // namespace

float Widen(DType dtype, const uint8_t* bytes, int64_t i) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, bytes + 4 * i, sizeof(value));
    return value;
  }
  uint16_t half;
  std::memcpy(&half, bytes + 2 * i, sizeof(half));
  return dtype == DType::kBF16 ? BF16ToFloat(half) : F16ToFloat(half);
}

void Read(const HostRows& rows, void* out) {
  const int64_t row_bytes = rows.num_cols * static_cast<int64_t>(SizeOf(rows.dtype));
  if (rows.dtype == rows.src_dtype && rows.stride_bytes == row_bytes) {
    std::memcpy(out, rows.src, rows.num_bytes());
    return;
  }
  for (int64_t row = 0; row < rows.num_rows; ++row) {
    const uint8_t* src = rows.src + row * rows.stride_bytes;
    uint8_t* out_row = static_cast<uint8_t*>(out) + row * row_bytes;
    if (rows.dtype == rows.src_dtype) {
      std::memcpy(out_row, src, row_bytes);
    } else if (rows.dtype == DType::kF32) {
      float* f32 = reinterpret_cast<float*>(out_row);
      for (int64_t col = 0; col < rows.num_cols; ++col) f32[col] = Widen(rows.src_dtype, src, col);
    } else {
      CHECK(rows.dtype == DType::kBF16) << Name(rows.src_dtype) << " to " << Name(rows.dtype);
      uint16_t* bf16 = reinterpret_cast<uint16_t*>(out_row);
      for (int64_t col = 0; col < rows.num_cols; ++col) {
        bf16[col] = FloatToBF16(Widen(rows.src_dtype, src, col));
      }
    }
  }
}

ReadAhead::ReadAhead(std::vector<HostRows> rows, Device* device)
    : rows_(std::move(rows)), device_(device), is_read_(rows_.size()) {
  if (rows_.empty()) return;
  for (const HostRows& r : rows_) slot_bytes_ = std::max(slot_bytes_, r.num_bytes());
  slot_bytes_ = (slot_bytes_ + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment;
  const int64_t num_rows = static_cast<int64_t>(rows_.size());
  num_slots_ = std::min(num_rows, kMaxSlots);
  slots_ = static_cast<uint8_t*>(device_->AllocateHost(num_slots_ * slot_bytes_));
  CHECK(slots_ != nullptr) << "no room for " << num_slots_ * slot_bytes_ << " bytes of host memory";
  for (int64_t i = 0; i < num_slots_; ++i) copied_.push_back(device_->NewEvent());
  for (int64_t i = 0; i < NumReaders(num_rows); ++i) readers_.emplace_back([this] { ReadSlots(); });
}

ReadAhead::~ReadAhead() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  for (std::thread& reader : readers_) reader.join();
  if (slots_ == nullptr) return;
  device_->Synchronize();
  device_->FreeHost(slots_);
}

void ReadAhead::ReadSlots() {
  for (;;) {
    int64_t i = 0;
    const auto may_read = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return stop_ || i < num_released_ + num_slots_;
    };
    {
      absl::MutexLock lock(&mutex_);
      if (num_begun_ == static_cast<int64_t>(rows_.size())) return;
      i = num_begun_++;
      mutex_.Await(absl::Condition(&may_read));
      if (stop_) return;
    }
    Read(rows_[i], Slot(i));
    absl::MutexLock lock(&mutex_);
    is_read_[i] = true;
  }
}

const void* ReadAhead::Next() {
  const int64_t i = num_taken_++;
  CHECK_LT(i, static_cast<int64_t>(rows_.size()));
  if (i > 0) copied_[(i - 1) % num_slots_]->Record();
  // Half of the slots may be on their way to the device while the other half is being read.
  const int64_t num_copied = i - num_slots_ / 2;
  if (num_copied > 0) copied_[(num_copied - 1) % num_slots_]->Wait();
  const auto is_read = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return bool{is_read_[i]}; };
  absl::MutexLock lock(&mutex_);
  num_released_ = std::max<int64_t>(num_copied, 0);
  mutex_.Await(absl::Condition(&is_read));
  return Slot(i);
}

}  // namespace bough
