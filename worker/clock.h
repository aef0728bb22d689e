#pragma once

#include <chrono>

#include "absl/time/time.h"

namespace bough {

// The process's clock as an absl::Time: it never goes back, and its zero is arbitrary.
inline absl::Time MonotonicNow() {
  return absl::UnixEpoch() + absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

}  // namespace bough
