// A line that shows how far a long task is.
#pragma once

#include <ostream>
#include <string>

namespace bough::client {

// On a terminal one line that is rewritten, at most ten times a second; elsewhere a plain line
// every 2 s. Not thread-safe; the caller gives the time.
class ProgressPrinter {
 public:
  ProgressPrinter(std::ostream& out, bool tty, int columns)
      : out_(out), tty_(tty), columns_(columns) {}

  // `seconds` since the task began; `line` without a newline.
  void Show(double seconds, const std::string& line);
  // Shows the last state and leaves the line.
  void Finish(const std::string& line);

 private:
  std::ostream& out_;
  const bool tty_;
  const int columns_;
  double shown_at_ = 0;
};

}  // namespace bough::client
