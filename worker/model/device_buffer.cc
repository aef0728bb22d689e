#include "worker/model/device_buffer.h"

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace bough {

constexpr int64_t kAlignment = 64;

absl::StatusOr<DeviceBuffer> DeviceBuffer::Allocate(int64_t num_bytes, const char* what) {
  CHECK_GE(num_bytes, 0);
  DeviceBuffer buffer;
  buffer.num_bytes_ = num_bytes;
  // aligned_alloc wants a multiple of the alignment; an empty buffer still has an address.
  const int64_t rounded = (num_bytes / kAlignment + 1) * kAlignment;
  buffer.data_.reset(std::aligned_alloc(kAlignment, rounded));
  if (buffer.data_ == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat(what, ": cannot allocate ", num_bytes, " bytes"));
  }
  return buffer;
}

DeviceBuffer DeviceBuffer::AllocateOrDie(int64_t num_bytes) {
  auto buffer = Allocate(num_bytes, "scratch");
  CHECK_OK(buffer.status());
  return *std::move(buffer);
}

void DeviceBuffer::Free::operator()(void* data) const { std::free(data); }

}  // namespace bough
