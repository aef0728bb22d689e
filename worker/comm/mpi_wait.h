// How this project calls MPI: every error is fatal, and whoever waits gives its core away, because
// the ranks of a group may outnumber the cores.
#pragma once

#include <mpi.h>

#include <span>

// MPI's errors leave the library in an undefined state: die with file:line, let the supervisor
// restart.
#define MPI_CHECK(call)                                              \
  do {                                                               \
    const int mpi_error_ = (call);                                   \
    if (mpi_error_ != MPI_SUCCESS) {                                 \
      ::bough::DieOfMpiError(__FILE__, __LINE__, #call, mpi_error_); \
    }                                                                \
  } while (false)

namespace bough {

[[noreturn]] void DieOfMpiError(const char* file, int line, const char* call, int error);

// Returns when all of `requests` are done; polls for 50 us, then sleeps between looks.
void WaitAll(std::span<MPI_Request> requests);

}  // namespace bough
