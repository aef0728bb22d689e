// A CUDA stream without CUDA's headers; op headers stay plain C++.
#pragma once

struct CUstream_st;

namespace bough {
using Stream = CUstream_st*;
}
