// What a GPU can do at best, as ceilings.h does for the CPU.
#pragma once

namespace bough {

// Read of 4 GiB by all SMs, and a copy of 2 GiB within the device (bytes read + bytes written), in
// GB/s; the best of a few runs. Measured on the current GPU. REQUIRES: a GPU with 4 GiB free.
double MeasureDeviceReadGbps();
double MeasureDeviceCopyGbps();

}  // namespace bough
