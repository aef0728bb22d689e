#include "worker/comm/mpi_wait.h"

#include <sched.h>

#include <chrono>
#include <string>
#include <thread>

#include "common/check.h"

namespace bough {
namespace {

using Clock = std::chrono::steady_clock;

// Ranks with a core each wait less than kPollFor for one another. Beyond it a rank sleeps: one that
// only yields uses up its time slice and is late when its turn comes. Two groups of two ranks on
// two cores, 16 sequences of the demo model each: 27-66 ms a step asleep, 46-140 ms yielding.
constexpr auto kPollFor = std::chrono::microseconds(50);
constexpr auto kSleep = std::chrono::microseconds(20);

}  // namespace

void DieOfMpiError(const char* file, int line, const char* call, int error) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(error, text, &length);
  internal::CheckFailure(file, line, call).stream() << std::string(text, length);
  __builtin_unreachable();
}

void WaitAll(std::span<MPI_Request> requests) {
  const auto start = Clock::now();
  for (;;) {
    int done = 0;
    MPI_CHECK(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done,
                          MPI_STATUSES_IGNORE));
    if (done) return;
    if (Clock::now() - start < kPollFor) {
      sched_yield();
    } else {
      std::this_thread::sleep_for(kSleep);
    }
  }
}

}  // namespace bough
