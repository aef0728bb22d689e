// When the next load report is due. Pure: time comes in.
//
//   a value changed          5 ms after the last report
//   busy, nothing changed   20 ms: what queued work takes is known ever better
//   idle, nothing changed  100 ms: a heartbeat
#pragma once

#include "absl/time/time.h"

namespace bough {

// Not thread-safe; its owner locks.
class LoadPacer {
 public:
  absl::Time Due(bool busy, bool changed) const {
    return last_ + absl::Milliseconds(changed ? 5 : busy ? 20 : 100);
  }
  void Sent(absl::Time now) { last_ = now; }

 private:
  absl::Time last_ = absl::InfinitePast();
};

}  // namespace bough
