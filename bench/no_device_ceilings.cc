#include "bench/device_ceilings.h"

namespace bough {

// Nothing to measure: opening a GPU has failed before (worker/model/no_cuda.cc).
double MeasureDeviceReadGbps() { return 0; }
double MeasureDeviceCopyGbps() { return 0; }

}  // namespace bough
