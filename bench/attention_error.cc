#include "bench/attention_error.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "common/block_hash.h"
#include "kernels/dtype.h"
#include "kernels/kv_layout.h"

namespace bough {
namespace {

class Elements {
 public:
  Elements(const std::vector<uint8_t>& bytes, DType dtype) : bytes_(bytes.data()), dtype_(dtype) {
    for (int i = 0; i < 256; ++i) e4m3_[i] = E4M3ToFloat(static_cast<uint8_t>(i));
  }
  float operator[](int64_t i) const {
    if (dtype_ == DType::kF8E4M3) return e4m3_[bytes_[i]];
    uint16_t bits;
    std::memcpy(&bits, bytes_ + 2 * i, sizeof(bits));
    return BF16ToFloat(bits);
  }

 private:
  const uint8_t* const bytes_;
  const DType dtype_;
  std::array<float, 256> e4m3_;
};

}  // namespace

std::vector<double> ExactAttention(const AttentionCase& c, const CachedKeys& keys,
                                   const uint16_t* q_bf16, int num_keys, double sm_scale) {
  const DType dtype = c.kv_dtype();
  const Elements k(keys.k_blocks, dtype), v(keys.v_blocks, dtype);
  const int dim = c.head_dim;
  std::vector<float> q(dim);
  std::transform(q_bf16, q_bf16 + dim, q.begin(), BF16ToFloat);
  std::vector<double> weights(num_keys);
  double max = -INFINITY, sum = 0;
  for (int key = 0; key < num_keys; ++key) {
    double dot = 0;
    for (int d = 0; d < dim; ++d) dot += 1.0 * q[d] * k[int64_t{key} * dim + d];
    weights[key] = dot * sm_scale;
    max = std::max(max, weights[key]);
  }
  for (double& w : weights) sum += w = std::exp(w - max);
  std::vector<double> o(dim);
  for (int key = 0; key < num_keys; ++key) {
    const int64_t block = int64_t{key / kBlockSize} * kBlockSize * dim;
    const int row = key % kBlockSize;
    const bool transposed = dtype == DType::kF8E4M3;
    for (int d = 0; d < dim; ++d) {
      const int at = transposed ? d * kBlockSize + ValueColumn(row) : row * dim + d;
      o[d] += weights[key] / sum * v[block + at];
    }
  }
  return o;
}

}  // namespace bough
