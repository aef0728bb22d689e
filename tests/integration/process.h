// Child processes that cannot outlive the test.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace bough::integration {

// One program and everything that it starts. Its stdout and stderr go to a file.
class Process {
 public:
  // REQUIRES: argv[0] is a path. The child dies with the thread that calls this.
  Process(std::vector<std::string> argv, std::string log_path);
  ~Process() { KillTree(); }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  // SIGKILL to the program and all its descendants; returns when it is reaped.
  void KillTree();
  // The exit status, -1 when it does not end in time or ended by a signal.
  int Wait(absl::Duration timeout);
  bool running();
  std::string Log() const;

 private:
  pid_t pid_;
  int status_ = 0;
  bool reaped_ = false;
  const std::string log_path_;
};

// `count` ports in a row on 127.0.0.1 that nobody listens on now; the first of them.
int FreePorts(int count);

// Calls `done` every 20 ms until it is true or `timeout` has passed; its last value. Other
// processes have no event to wait for.
template <typename Done>
bool WaitUntil(absl::Duration timeout, Done done) {
  const absl::Time end = absl::Now() + timeout;
  while (!done()) {
    if (absl::Now() > end) return done();
    absl::SleepFor(absl::Milliseconds(20));
  }
  return true;
}

}  // namespace bough::integration
