// A build without MPI (ENABLE_MPI=OFF): one rank is all there is.
#include "common/check.h"
#include "worker/comm/single_rank.h"

namespace bough {

std::unique_ptr<MpiGroup> MpiGroup::Init(int*, char***) {
  CHECK_EQ(NumLaunchedRanks(), 1) << "this build has no MPI (ENABLE_MPI=OFF)";
  return MakeSingleRankGroup();
}

std::unique_ptr<Communicator> MakeCpuCommunicator(MpiGroup*) {
  return MakeSingleRankCommunicator();
}

}  // namespace bough
