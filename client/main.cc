#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <iostream>
#include <thread>

#include "client/commands.h"

namespace {

// Signals are taken by one thread, so that what they trigger may be ordinary code. A second Ctrl-C,
// or one that nobody handles, ends the process at once.
void WatchSignals(const sigset_t& signals, bough::client::Interrupt& interrupt) {
  int signal = 0;
  do {
    sigwait(&signals, &signal);
  } while (interrupt.Raise());
  _exit(bough::client::kExitInterrupt);
}

}  // namespace

int main(int argc, char** argv) {
  static sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // inherited by all threads that follow
  static bough::client::Interrupt interrupt;
  std::thread([] { WatchSignals(signals, interrupt); }).detach();

  std::ios::sync_with_stdio(true);
  bough::client::Io io{std::cin,       std::cout,      std::cerr, isatty(0) == 1,
                       isatty(1) == 1, isatty(2) == 1, interrupt};
  const int code = bough::client::RunCommand({argv + 1, argv + argc}, io);
  std::cout.flush();
  return code;
}
