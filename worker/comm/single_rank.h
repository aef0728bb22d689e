// A group of one rank: nothing moves, nobody waits.
#pragma once

#include <memory>

#include "worker/comm/communicator.h"
#include "worker/comm/mpi_group.h"

namespace bough {

// Ranks that mpirun started, this one included; 1 when the process was started by hand.
int NumLaunchedRanks();

std::unique_ptr<MpiGroup> MakeSingleRankGroup();
std::unique_ptr<Communicator> MakeSingleRankCommunicator();

}  // namespace bough
