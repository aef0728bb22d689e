// The CUDA twin makes the CPU's values, bit by bit.
#include "kernels/init.h"

#include "tests/kernels_cuda/device_tensor.h"

namespace bough {
namespace {

class FillUniformCuda : public CudaTest {
 protected:
  template <typename T>
  void ExpectSame(FillUniformParams p) {
    const size_t count = p.num_rows * p.num_cols;
    std::vector<T> expected(count), poison(count, T(77));
    p.out = expected.data();
    cpu::FillUniform(p);
    DeviceBytes out(poison);
    p.out = out.as<void>();
    cuda::FillUniform(p, nullptr);
    EXPECT_EQ(out.Download<T>(), expected) << p.num_rows << " x " << p.num_cols;
  }
};

TEST_F(FillUniformCuda, AgreesWithTheCpuOnEveryShape) {
  for (int64_t rows : {0, 1, 2, 70000}) {  // more than a grid has rows
    for (int64_t cols : {0, 1, 255, 256, 257}) {
      if (rows * cols > 1 << 18 && cols != 1) continue;
      ExpectSame<uint16_t>({.key = 11,
                            .half_width = 0.03f,
                            .num_rows = rows,
                            .num_cols = cols,
                            .tensor_cols = cols});
    }
  }
}

TEST_F(FillUniformCuda, AgreesWithTheCpuOnARectangleFarInside) {
  FillUniformParams p = {.key = ~0ull,
                         .mean = 1,
                         .half_width = 0.7f,
                         .row_begin = 3'000'000'000,
                         .num_rows = 5,
                         .col_begin = 14000,
                         .num_cols = 300,
                         .tensor_cols = 14336};
  ExpectSame<uint16_t>(p);
  p.dtype = DType::kF32;
  ExpectSame<float>(p);
}

}  // namespace
}  // namespace bough
