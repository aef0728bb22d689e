#include "common/check.h"
#include "worker/comm/communicator.h"

namespace bough {

std::unique_ptr<Communicator> MakeCudaCommunicator(MpiGroup*, Stream) {
  CHECK(false) << "without CUDA there is no GPU to communicate";
  return nullptr;
}

}  // namespace bough
