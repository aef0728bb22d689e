// What a command talks to. The process gives its own streams; tests give string streams.
#pragma once

#include <functional>
#include <istream>
#include <mutex>
#include <ostream>

namespace bough::client {

// Who is to be told of Ctrl-C. Thread-safe.
class Interrupt {
 public:
  // Runs the present handler; false when there is none, or when it has run already. Called from the
  // signal thread.
  bool Raise();
  bool raised() const;

 private:
  friend class InterruptScope;
  mutable std::mutex mutex_;
  std::function<void()> handler_;
  bool raised_ = false;
};

// While it lives, an interrupt runs `handler` on the signal thread; starts with raised() == false.
class InterruptScope {
 public:
  InterruptScope(Interrupt& interrupt, std::function<void()> handler);
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

 private:
  Interrupt& interrupt_;
};

struct Io {
  std::istream& in;
  std::ostream& out;
  std::ostream& err;
  bool in_tty, out_tty, err_tty;
  Interrupt& interrupt;
};

// Exit codes.
inline constexpr int kExitOk = 0;
inline constexpr int kExitError = 1;        // the server refused, or could not be reached
inline constexpr int kExitUsage = 2;        // the command line is wrong; nothing was sent
inline constexpr int kExitInterrupt = 130;  // Ctrl-C

}  // namespace bough::client
