// Random inputs of the attention ops over a paged cache that punishes a stray read: slots that hold
// no key are NaN in every dtype, and block tables name blocks that do not exist past a sequence's end.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/attention.h"
#include "tests/testing/inputs.h"

namespace bough {

struct AttentionShape {
  int num_heads = 4, num_kv_heads = 2, head_dim = 128, block_size = 64;
  DType kv_dtype = DType::kF32;
  int sliding_window = 0;
  bool kv_scales = false;  // k_scale and v_scale given, else nullptr
};

struct SequenceShape {
  int num_q = 1, seqlen_kv = 1;
};

inline constexpr int32_t kNoBlock = 1 << 30;

class AttentionInputs {
 public:
  // The sequences of `shared` share their first shared_prefix_len keys (whole blocks).
  AttentionInputs(Random& random, AttentionShape shape, std::vector<SequenceShape> seqs,
                  int shared_prefix_len = 0)
      : shape_(shape) {
    const int shared_blocks = shared_prefix_len / shape.block_size;
    int num_blocks = 2 + shared_blocks;
    for (const SequenceShape& s : seqs) {
      const int blocks = (s.seqlen_kv + shape.block_size - 1) / shape.block_size;
      max_blocks_ = std::max(max_blocks_, 1 + std::max(blocks, shared_blocks));
      num_blocks += std::max(0, blocks - shared_blocks);
    }
    MakeCache(random, num_blocks);
    std::vector<int32_t> prefix_table;
    for (int i = 0; i < shared_blocks; ++i) {
      prefix_table.push_back(TakeBlock());
      FillBlock(random, prefix_table.back(), shape.block_size);
    }
    for (const SequenceShape& s : seqs) {
      std::vector<int32_t> table = prefix_table;
      for (int len = static_cast<int>(table.size()) * shape.block_size; len < s.seqlen_kv;
           len += shape.block_size) {
        table.push_back(TakeBlock());
        FillBlock(random, table.back(), std::min(shape.block_size, s.seqlen_kv - len));
      }
      table.resize(max_blocks_, kNoBlock);
      block_tables.insert(block_tables.end(), table.begin(), table.end());
      cu_seqlens_q.push_back(cu_seqlens_q.back() + s.num_q);
      seqlens_kv.push_back(s.seqlen_kv);
    }
    q_stride_ = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
    q = RandomFloats(random, int64_t{num_tokens()} * q_stride_, 2);
    for (int h = 0; shape.kv_scales && h < shape.num_kv_heads; ++h) {
      k_scale.push_back(0.5f + 0.25f * h);
      v_scale.push_back(2.0f - 0.25f * h);
    }
    SyncCache();
  }

  int num_tokens() const { return cu_seqlens_q.back(); }
  int num_seqs() const { return static_cast<int>(seqlens_kv.size()); }
  int max_blocks() const { return max_blocks_; }
  int max_seqlen_q() const {
    int max = 1;
    for (int s = 0; s < num_seqs(); ++s) max = std::max(max, cu_seqlens_q[s + 1] - cu_seqlens_q[s]);
    return max;
  }
  float sm_scale() const { return 1 / std::sqrt(static_cast<float>(shape_.head_dim)); }
  std::vector<int> OutputShape() const { return {num_tokens(), shape_.num_heads, shape_.head_dim}; }

  std::vector<float> RunPaged() const {
    std::vector<float> o = EmptyOutput();
    PagedAttentionParams params = Paged();
    params.o = o.data();
    cpu::PagedAttention(params);
    return o;
  }

  // Groups: group_start and prefix_len as the op's.
  std::vector<float> RunBifurcated(const std::vector<int32_t>& group_start,
                                   const std::vector<int32_t>& prefix_len) const {
    std::vector<float> o = EmptyOutput();
    BifurcatedAttentionParams params = Bifurcated(group_start, prefix_len);
    params.o = o.data();
    cpu::BifurcatedAttention(params);
    return o;
  }

  // The ops' parameters over host memory, without o.
  PagedAttentionParams Paged() const {
    return {.q = q.data(),
            .k_cache = k_bytes_.data(),
            .v_cache = v_bytes_.data(),
            .k_scale = shape_.kv_scales ? k_scale.data() : nullptr,
            .v_scale = shape_.kv_scales ? v_scale.data() : nullptr,
            .block_tables = block_tables.data(),
            .cu_seqlens_q = cu_seqlens_q.data(),
            .seqlens_kv = seqlens_kv.data(),
            .max_seqlen_q = max_seqlen_q(),
            .num_seqs = num_seqs(),
            .num_heads = shape_.num_heads,
            .num_kv_heads = shape_.num_kv_heads,
            .head_dim = shape_.head_dim,
            .block_size = shape_.block_size,
            .max_blocks = max_blocks_,
            .q_stride = q_stride_,
            .sliding_window = shape_.sliding_window,
            .sm_scale = sm_scale(),
            .dtype = DType::kF32,
            .kv_dtype = shape_.kv_dtype};
  }

  BifurcatedAttentionParams Bifurcated(const std::vector<int32_t>& group_start,
                                       const std::vector<int32_t>& prefix_len) const {
    return {.q = q.data(),
            .k_cache = k_bytes_.data(),
            .v_cache = v_bytes_.data(),
            .k_scale = shape_.kv_scales ? k_scale.data() : nullptr,
            .v_scale = shape_.kv_scales ? v_scale.data() : nullptr,
            .block_tables = block_tables.data(),
            .seqlens_kv = seqlens_kv.data(),
            .group_start = group_start.data(),
            .prefix_len = prefix_len.data(),
            .num_seqs = num_seqs(),
            .num_groups = static_cast<int>(prefix_len.size()),
            .num_heads = shape_.num_heads,
            .num_kv_heads = shape_.num_kv_heads,
            .head_dim = shape_.head_dim,
            .block_size = shape_.block_size,
            .max_blocks = max_blocks_,
            .q_stride = q_stride_,
            .sm_scale = sm_scale(),
            .dtype = DType::kF32,
            .kv_dtype = shape_.kv_dtype};
  }

  std::vector<float> EmptyOutput() const {
    return std::vector<float>(int64_t{num_tokens()} * shape_.num_heads * shape_.head_dim, NAN);
  }

  // softmax(q K^T sm_scale) V in double, each query over the keys that it sees; 0 over none.
  std::vector<double> Reference() const {
    std::vector<double> o;
    const int group = shape_.num_heads / shape_.num_kv_heads;
    for (int s = 0; s < num_seqs(); ++s) {
      for (int t = cu_seqlens_q[s]; t < cu_seqlens_q[s + 1]; ++t) {
        const int end = seqlens_kv[s] - cu_seqlens_q[s + 1] + t + 1;
        const int begin = shape_.sliding_window ? std::max(0, end - shape_.sliding_window) : 0;
        for (int h = 0; h < shape_.num_heads; ++h) {
          const float* query = &q[int64_t{t} * q_stride_ + h * shape_.head_dim];
          const std::vector<double> head = AttendOne(query, s, h / group, begin, end);
          o.insert(o.end(), head.begin(), head.end());
        }
      }
    }
    return o;
  }

  // Start of a key (or value) in the caches: key position `pos` of sequence `s`.
  int64_t KeyOffset(int s, int kv_head, int pos) const {
    const int64_t block = block_tables[int64_t{s} * max_blocks_ + pos / shape_.block_size];
    return ((block * shape_.num_kv_heads + kv_head) * shape_.block_size + pos % shape_.block_size) *
           shape_.head_dim;
  }

  const std::vector<char>& k_bytes() const { return k_bytes_; }
  const std::vector<char>& v_bytes() const { return v_bytes_; }

  std::vector<float> q;                     // [num_tokens, q_stride]
  std::vector<int32_t> block_tables;        // [num_seqs, max_blocks]
  std::vector<int32_t> cu_seqlens_q = {0};  // [num_seqs + 1]
  std::vector<int32_t> seqlens_kv;          // [num_seqs]
  std::vector<float> k_scale, v_scale;      // [num_kv_heads], or empty

 private:
  void MakeCache(Random& random, int num_blocks) {
    const int64_t block_elements =
        int64_t{shape_.num_kv_heads} * shape_.block_size * shape_.head_dim;
    k_.assign(num_blocks * block_elements, NAN);
    v_ = k_;
    free_blocks_.resize(num_blocks);
    std::iota(free_blocks_.begin(), free_blocks_.end(), 0);
    std::shuffle(free_blocks_.begin(), free_blocks_.end(), random);
  }

  int32_t TakeBlock() {
    const int32_t block = free_blocks_.back();
    free_blocks_.pop_back();
    return block;
  }

  void FillBlock(Random& random, int64_t block, int num_keys) {
    for (int h = 0; h < shape_.num_kv_heads; ++h) {
      const int64_t at = (block * shape_.num_kv_heads + h) * shape_.block_size * shape_.head_dim;
      const int64_t size = int64_t{num_keys} * shape_.head_dim;
      for (std::vector<float>* cache : {&k_, &v_}) {
        std::vector<float> values = RandomFloats(random, size, 2);
        if (shape_.kv_dtype == DType::kBF16) values = RoundToBF16(values);
        if (shape_.kv_dtype == DType::kF8E4M3) {
          for (float& v : values) v = E4M3ToFloat(FloatToE4M3(v));
        }
        std::copy(values.begin(), values.end(), cache->begin() + at);
      }
    }
  }

  void SyncCache() {
    const auto sync = [&](const std::vector<float>& from, std::vector<char>& to) {
      to.resize(from.size() * SizeOf(shape_.kv_dtype));
      for (size_t i = 0; i < from.size(); ++i) {
        if (shape_.kv_dtype == DType::kBF16) {
          reinterpret_cast<uint16_t*>(to.data())[i] = FloatToBF16(from[i]);
        } else if (shape_.kv_dtype == DType::kF8E4M3) {
          reinterpret_cast<uint8_t*>(to.data())[i] = FloatToE4M3(from[i]);
        } else {
          reinterpret_cast<float*>(to.data())[i] = from[i];
        }
      }
    };
    sync(k_, k_bytes_);
    sync(v_, v_bytes_);
  }

  std::vector<double> AttendOne(const float* query, int s, int kv_head, int begin, int end) const {
    std::vector<double> scores;
    double max = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int j = begin; j < end; ++j) {
      const float* key = &k_[KeyOffset(s, kv_head, j)];
      double score = 0;
      for (int d = 0; d < shape_.head_dim; ++d) score += double{query[d]} * key[d];
      scores.push_back(score * sm_scale() * (shape_.kv_scales ? k_scale[kv_head] : 1));
      max = std::max(max, scores.back());
    }
    std::vector<double> o(shape_.head_dim, 0.0);
    for (int j = begin; j < end; ++j) {
      const double p = std::exp(scores[j - begin] - max);
      const float* value = &v_[KeyOffset(s, kv_head, j)];
      for (int d = 0; d < shape_.head_dim; ++d) o[d] += p * value[d];
      sum += p;
    }
    const double v_factor = shape_.kv_scales ? v_scale[kv_head] : 1;
    for (double& x : o) x = sum > 0 ? x / sum * v_factor : 0;
    return o;
  }

  AttentionShape shape_;
  int max_blocks_ = 0, q_stride_ = 0;
  std::vector<float> k_, v_;             // [num_blocks, num_kv_heads, block_size, head_dim]
  std::vector<char> k_bytes_, v_bytes_;  // the same in kv_dtype
  std::vector<int32_t> free_blocks_;
};

}  // namespace bough
