#include "client/io.h"

#include <utility>

namespace bough::client {

bool Interrupt::Raise() {
  std::lock_guard lock(mutex_);
  if (!handler_ || raised_) return false;
  raised_ = true;
  handler_();
  return true;
}

bool Interrupt::raised() const {
  std::lock_guard lock(mutex_);
  return raised_;
}

InterruptScope::InterruptScope(Interrupt& interrupt, std::function<void()> handler)
    : interrupt_(interrupt) {
  std::lock_guard lock(interrupt_.mutex_);
  interrupt_.raised_ = false;
  interrupt_.handler_ = std::move(handler);
}

InterruptScope::~InterruptScope() {
  std::lock_guard lock(interrupt_.mutex_);
  interrupt_.handler_ = nullptr;
}

}  // namespace bough::client
