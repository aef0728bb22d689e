// The terminal as a screen: size, keys one by one, and a restore that always happens.
#pragma once

#include <termios.h>

#include <string>

namespace bough::client {

// Columns and rows of the terminal on `fd`; 80 x 24 when it is none.
struct TerminalSize {
  int columns = 80, rows = 24;
};
TerminalSize SizeOf(int fd);

// From construction to destruction stdout is the alternate screen without cursor, and stdin gives
// keys unechoed. REQUIRES: both are terminals.
class FullScreen {
 public:
  FullScreen();
  ~FullScreen();
  FullScreen(const FullScreen&) = delete;
  FullScreen& operator=(const FullScreen&) = delete;

  // Replaces what is shown; lines that do not fit are cut off.
  void Draw(const std::string& text);
  // The next key, 0 when none came in time.
  char ReadKey(int timeout_ms);

 private:
  termios before_;
};

}  // namespace bough::client
