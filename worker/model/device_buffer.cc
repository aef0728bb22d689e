#include "worker/model/device_buffer.h"

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace bough {

absl::StatusOr<DeviceBuffer> DeviceBuffer::Allocate(Device* device, int64_t num_bytes,
                                                    const char* what) {
  CHECK_GE(num_bytes, 0);
  DeviceBuffer buffer;
  buffer.device_ = device;
  buffer.num_bytes_ = num_bytes;
  buffer.data_ = device->Allocate(num_bytes);
  if (buffer.data_ == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat(what, ": cannot allocate ", num_bytes, " bytes on ", device->name()));
  }
  return buffer;
}

DeviceBuffer DeviceBuffer::Scratch(Device* device, int64_t count, DType dtype) {
  auto buffer = Allocate(device, count * static_cast<int64_t>(SizeOf(dtype)), "scratch");
  CHECK_OK(buffer.status());
  return *std::move(buffer);
}

void DeviceBuffer::Reset() {
  if (data_ != nullptr) device_->Free(data_);
  data_ = nullptr;
}

}  // namespace bough
