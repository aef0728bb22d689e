#include "client/terminal.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>

#include "absl/strings/str_split.h"
#include "client/format.h"

namespace bough::client {
namespace {

void Write(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

}  // namespace

TerminalSize SizeOf(int fd) {
  winsize size{};
  if (ioctl(fd, TIOCGWINSZ, &size) != 0 || size.ws_col == 0 || size.ws_row == 0) return {};
  return {size.ws_col, size.ws_row};
}

FullScreen::FullScreen() {
  tcgetattr(STDIN_FILENO, &before_);
  termios keys = before_;
  keys.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
  tcsetattr(STDIN_FILENO, TCSANOW, &keys);
  Write("\033[?1049h\033[?25l");
}

FullScreen::~FullScreen() {
  Write("\033[?25h\033[?1049l");
  tcsetattr(STDIN_FILENO, TCSANOW, &before_);
}

void FullScreen::Draw(const std::string& text) {
  const TerminalSize size = SizeOf(STDOUT_FILENO);
  std::string frame = "\033[H";
  int row = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    if (row++ == size.rows) break;
    if (row > 1) frame += "\r\n";
    frame += Clip(std::string(line), size.columns) + "\033[0m\033[K";
  }
  Write(frame + "\033[J");
}

char FullScreen::ReadKey(int timeout_ms) {
  pollfd input{STDIN_FILENO, POLLIN, 0};
  char key = 0;
  if (poll(&input, 1, timeout_ms) == 1 && read(STDIN_FILENO, &key, 1) == 1) return key;
  return 0;
}

}  // namespace bough::client
