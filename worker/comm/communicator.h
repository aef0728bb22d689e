// Collectives between the ranks of a group on activations: over MPI on the CPU, over NCCL between
// GPUs; with one rank nothing moves. Sums are taken in an order that depends on the number of ranks
// and the count alone, and every rank gets the same bits.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/dtype.h"
#include "kernels/stream.h"
#include "worker/comm/mpi_group.h"

namespace bough {

// Called only from the engine thread (rank 0) or the follower loop. Over MPI a call has done its work
// when it returns; over NCCL it has put it on the stream.
class Communicator {
 public:
  virtual ~Communicator() = default;
  // data[i] = sum over ranks of their data[i]. f32, or bf16 over NCCL.
  virtual void AllReduceSum(void* data, int64_t count, DType dtype) = 0;
  // Rank 0's `out` gets every rank's `count` values, rank after rank; others may pass nullptr.
  virtual void Gather(const float* in, int64_t count, float* out) = 0;
  // Everybody gets rank 0's values.
  virtual void Broadcast(int32_t* data, int64_t count) = 0;
};

std::unique_ptr<Communicator> MakeCpuCommunicator(MpiGroup* group);
// Collective. Each rank has its own GPU, made current before; memory is that GPU's. Dies when NCCL
// cannot connect the ranks.
std::unique_ptr<Communicator> MakeCudaCommunicator(MpiGroup* group, Stream stream);

}  // namespace bough
