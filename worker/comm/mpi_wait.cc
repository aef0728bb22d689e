#include "worker/comm/mpi_wait.h"

#include <sched.h>

#include <string>

#include "common/check.h"

namespace bough {

void DieOfMpiError(const char* file, int line, const char* call, int error) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(error, text, &length);
  internal::CheckFailure(file, line, call).stream() << std::string(text, length);
  __builtin_unreachable();
}

void WaitAll(std::span<MPI_Request> requests) {
  for (;;) {
    int done = 0;
    MPI_CHECK(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done,
                          MPI_STATUSES_IGNORE));
    if (done) return;
    sched_yield();
  }
}

}  // namespace bough
