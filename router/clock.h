// The process's monotonic time as absl::Time. Its epoch means nothing; only differences count.
#pragma once

#include <chrono>

#include "absl/time/time.h"

namespace bough::router {

inline absl::Time MonotonicNow() {
  return absl::UnixEpoch() + absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

}  // namespace bough::router
