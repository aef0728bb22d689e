// Collectives between the ranks of a group on activations. On the CPU over MPI; with one rank nothing
// moves. Sums are taken in an order that depends on the number of ranks alone, and every rank gets the
// same bits.
#pragma once

#include <cstdint>
#include <memory>

#include "worker/comm/mpi_group.h"

namespace bough {

// Called only from the engine thread (rank 0) or the follower loop.
class Communicator {
 public:
  virtual ~Communicator() = default;
  // data[i] = sum over ranks of their data[i].
  virtual void AllReduceSum(float* data, int64_t count) = 0;
  // Rank 0's `out` gets every rank's `count` values, rank after rank; others may pass nullptr.
  virtual void Gather(const float* in, int64_t count, float* out) = 0;
};

std::unique_ptr<Communicator> MakeCpuCommunicator(MpiGroup* group);

}  // namespace bough
