#include "tests/worker_cuda/int4_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace bough::testing {
namespace {

constexpr int64_t kGroupSize = 32;

bool IsRounded(const std::string& tensor) {
  return absl::StrContains(tensor, "_proj.") || absl::StrContains(tensor, ".experts.");
}

void RoundGroup(std::span<uint16_t> group) {
  float amax = 0;
  for (uint16_t bits : group) amax = std::max(amax, std::abs(BF16ToFloat(bits)));
  if (amax == 0) return;
  const float step = amax / 7;
  for (uint16_t& bits : group) {
    bits = FloatToBF16(step * std::nearbyint(BF16ToFloat(bits) / step));
  }
}

}  // namespace

absl::StatusOr<StoredTensor> Int4Weights::Find(const std::string& tensor,
                                               const Shape& shape) const {
  ASSIGN_OR_RETURN(StoredTensor stored, source_->Find(tensor, shape));
  if (!IsRounded(tensor)) return stored;
  if (stored.dtype != DType::kBF16 || stored.bytes == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(tensor, ": not stored in bf16"));
  }
  std::vector<uint16_t>& values = rounded_[tensor];
  if (values.empty()) {
    values.resize(shape[0] * shape[1]);
    std::memcpy(values.data(), stored.bytes, values.size() * sizeof(uint16_t));
    for (int64_t row = 0; row < shape[0]; ++row) {
      for (int64_t col = 0; col < shape[1]; col += kGroupSize) {
        const int64_t size = std::min(kGroupSize, shape[1] - col);
        RoundGroup(std::span(values).subspan(row * shape[1] + col, size));
      }
    }
  }
  stored.bytes = reinterpret_cast<const uint8_t*>(values.data());
  return stored;
}

}  // namespace bough::testing
