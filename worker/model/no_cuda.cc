#include "worker/model/device.h"

namespace bough {

absl::StatusOr<std::unique_ptr<Device>> OpenCudaDevice(int) {
  return absl::UnavailableError("--device=cuda: this build has no CUDA kernels (ENABLE_CUDA=OFF)");
}

}  // namespace bough
