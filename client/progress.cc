#include "client/progress.h"

#include "client/format.h"

namespace bough::client {
namespace {
constexpr double kTtyPeriodSeconds = 0.1, kPlainPeriodSeconds = 2;
}

void ProgressPrinter::Show(double seconds, const std::string& line) {
  if (seconds - shown_at_ < (tty_ ? kTtyPeriodSeconds : kPlainPeriodSeconds)) return;
  shown_at_ = seconds;
  if (tty_) {
    out_ << "\r" << Clip(line, columns_ - 1) << "\033[K" << std::flush;
  } else {
    out_ << line << std::endl;
  }
}

void ProgressPrinter::Finish(const std::string& line) {
  if (tty_) {
    out_ << "\r" << Clip(line, columns_ - 1) << "\033[K\n" << std::flush;
  } else {
    out_ << line << std::endl;
  }
}

}  // namespace bough::client
