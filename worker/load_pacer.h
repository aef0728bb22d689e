// When the next load report is due. Pure: time comes in.
//
//   busy                     every 5 ms
//   idle, a value changed    10 ms after the last report
//   idle, nothing changed    100 ms after the last report (a heartbeat)
#pragma once

#include "absl/time/time.h"

namespace bough {

// Not thread-safe; its owner locks.
class LoadPacer {
 public:
  absl::Time Due(bool busy, bool changed) const {
    return last_ + absl::Milliseconds(busy ? 5 : changed ? 10 : 100);
  }
  void Sent(absl::Time now) { last_ = now; }

 private:
  absl::Time last_ = absl::InfinitePast();
};

}  // namespace bough
