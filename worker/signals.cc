#include "worker/signals.h"

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <utility>

#include "common/check.h"

namespace bough {
namespace {

sigset_t StopSet() {
  sigset_t set;
  sigemptyset(&set);
  for (int signal : {SIGTERM, SIGINT, SIGUSR1}) sigaddset(&set, signal);
  return set;
}

bool StartedByMpirun() { return std::getenv("OMPI_COMM_WORLD_RANK") != nullptr; }

}  // namespace

void BlockStopSignals() {
  const sigset_t set = StopSet();
  CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set, nullptr), 0);
}

void FollowMpirun(int rank) {
  if (!StartedByMpirun()) return;
  CHECK_EQ(prctl(PR_SET_PDEATHSIG, SIGKILL), 0);
  if (rank == 0) return;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  CHECK_EQ(pthread_sigmask(SIG_UNBLOCK, &set, nullptr), 0);
}

StopSignals::StopSignals(std::function<void(int)> on_signal)
    : on_signal_(std::move(on_signal)), thread_([this] { Wait(); }) {}

StopSignals::~StopSignals() {
  done_ = true;
  thread_.join();
}

void StopSignals::Wait() {
  const sigset_t set = StopSet();
  const timespec poll = {.tv_sec = 0, .tv_nsec = 200'000'000};
  int num_signals = 0;
  while (!done_) {
    siginfo_t info;
    const int signal = sigtimedwait(&set, &info, &poll);
    if (signal == SIGTERM && StartedByMpirun() && info.si_pid == getppid()) std::_Exit(143);
    if (signal > 0) on_signal_(++num_signals);
  }
}

}  // namespace bough
