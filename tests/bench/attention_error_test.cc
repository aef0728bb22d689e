#include "bench/attention_error.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "common/block_hash.h"
#include "kernels/attention.h"

namespace bough {
namespace {

// One sequence of 100 keys of one KV head of 128, its two blocks in a row.
class ExactAttentionTest : public ::testing::TestWithParam<AttentionPrecision> {
 protected:
  static constexpr int kKeys = 100, kDim = 128, kElements = 2 * kBlockSize * kDim;

  ExactAttentionTest() {
    case_.precision = GetParam();
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (auto* blocks : {&keys_.k_blocks, &keys_.v_blocks}) {
      for (int i = 0; i < kElements; ++i) Append(normal(random), blocks);
    }
    for (uint16_t& x : q_) x = FloatToBF16(normal(random));
  }

  void Append(float value, std::vector<uint8_t>* blocks) {
    const uint16_t bits = FloatToBF16(value);
    if (case_.kv_dtype() == DType::kF8E4M3) {
      blocks->push_back(FloatToE4M3(value));
    } else {
      blocks->insert(blocks->end(), {static_cast<uint8_t>(bits), static_cast<uint8_t>(bits >> 8)});
    }
  }

  AttentionCase case_;
  CachedKeys keys_;
  uint16_t q_[kDim];
};

TEST_P(ExactAttentionTest, AgreesWithTheDefinition) {
  float q[kDim], got[kDim];
  for (int d = 0; d < kDim; ++d) q[d] = BF16ToFloat(q_[d]);
  const int32_t table[] = {0, 1}, cu_seqlens_q[] = {0, 1}, seqlen[] = {kKeys};
  cpu::PagedAttention({.q = q,
                       .k_cache = keys_.k_blocks.data(),
                       .v_cache = keys_.v_blocks.data(),
                       .block_tables = table,
                       .cu_seqlens_q = cu_seqlens_q,
                       .seqlens_kv = seqlen,
                       .o = got,
                       .max_seqlen_q = 1,
                       .num_seqs = 1,
                       .num_heads = 1,
                       .num_kv_heads = 1,
                       .head_dim = kDim,
                       .block_size = kBlockSize,
                       .max_blocks = 2,
                       .q_stride = kDim,
                       .sm_scale = 0.1f,
                       .kv_dtype = case_.kv_dtype()});
  const std::vector<double> want = ExactAttention(case_, keys_, q_, kKeys, 0.1);
  for (int d = 0; d < kDim; ++d) EXPECT_NEAR(got[d], want[d], 1e-5) << d;
}

INSTANTIATE_TEST_SUITE_P(Caches, ExactAttentionTest,
                         ::testing::Values(AttentionPrecision::kBF16, AttentionPrecision::kFp8));

}  // namespace
}  // namespace bough
