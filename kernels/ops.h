// The ops of the backend that runs the model: ops::Gemm(...), ops::PagedAttention(...).
#pragma once

#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/moe.h"
#include "kernels/sampling.h"

namespace bough {
namespace ops = cpu;
}
