// Random inputs of attention over a paged cache that punishes a stray read: slots that hold no key
// are NaN (for CUDA, which may read them, a number that would show), and block tables name blocks
// that do not exist past a sequence's end.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "kernels/attention.h"
#include "kernels/kv_layout.h"
#include "tests/testing/inputs.h"
#include "tests/testing/random_forest.h"

namespace bough {

struct AttentionShape {
  int num_heads = 4, num_kv_heads = 2, head_dim = 128, block_size = 64;
  DType kv_dtype = DType::kF32;
  int sliding_window = 0;
  bool kv_scales = false;  // k_scale and v_scale given, else nullptr
  float unused = NAN;      // in slots that hold no key
};

inline constexpr int32_t kNoBlock = 1 << 30;

class AttentionInputs {
 public:
  // Sequences of a node have the same blocks for its keys.
  AttentionInputs(Random& random, AttentionShape shape, const std::vector<SequenceShape>& seqs,
                  std::vector<SharedNode> shared_nodes = {})
      : nodes(std::move(shared_nodes)), own_begin(seqs.size(), 0), shape_(shape) {
    for (const SharedNode& node : nodes) {
      std::fill(own_begin.begin() + node.seq_begin, own_begin.begin() + node.seq_end, node.key_end);
    }
    int num_keys = 2 * shape.block_size;  // in whole blocks
    for (const SharedNode& node : nodes) {
      if (node.seq_begin < node.seq_end) num_keys += node.key_end - node.key_begin;
    }
    for (size_t s = 0; s < seqs.size(); ++s) {
      const int blocks = (seqs[s].seqlen_kv + shape.block_size - 1) / shape.block_size;
      max_blocks_ = std::max(max_blocks_, 1 + blocks);
      num_keys += blocks * shape.block_size - own_begin[s];
    }
    MakeCache(random, num_keys / shape.block_size);
    block_tables.assign(seqs.size() * max_blocks_, kNoBlock);
    for (const SharedNode& node : nodes) ShareBlocks(random, node);
    for (int s = 0; s < static_cast<int>(seqs.size()); ++s) {
      for (int len = own_begin[s]; len < seqs[s].seqlen_kv; len += shape.block_size) {
        BlockOf(s, len) = TakeBlock();
        FillBlock(random, BlockOf(s, len), std::min(shape.block_size, seqs[s].seqlen_kv - len));
      }
      cu_seqlens_q.push_back(cu_seqlens_q.back() + seqs[s].num_q);
      seqlens_kv.push_back(seqs[s].seqlen_kv);
    }
    q_stride_ = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
    q = RandomFloats(random, int64_t{num_tokens()} * q_stride_, 2);
    for (int h = 0; shape.kv_scales && h < shape.num_kv_heads; ++h) {
      k_scale.push_back(0.5f + 0.25f * h);
      v_scale.push_back(2.0f - 0.25f * h);
    }
    SyncCache();
  }

  AttentionInputs(Random& random, AttentionShape shape, const ForestShape& forest)
      : AttentionInputs(random, shape, forest.seqs, forest.nodes) {}

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

  std::vector<float> RunPaged() const { return Run(Paged()); }
  // As if nothing were shared.
  std::vector<float> RunPlain() const {
    PagedAttentionParams params = Paged();
    params.num_nodes = 0;
    return Run(params);
  }

  // The tables' entries that a reader of nodes has no business with.
  void HideSharedBlocks() {
    for (const SharedNode& node : nodes) {
      for (int s = node.seq_begin + 1; s < node.seq_end; ++s) {
        for (int key = node.key_begin; key < node.key_end; key += shape_.block_size) {
          BlockOf(s, key) = kNoBlock;
        }
      }
    }
  }

  // The op's parameters over host memory, without o.
  PagedAttentionParams Paged() const {
    return {.q = q.data(),
            .k_cache = k_bytes_.data(),
            .v_cache = v_bytes_.data(),
            .k_scale = shape_.kv_scales ? k_scale.data() : nullptr,
            .v_scale = shape_.kv_scales ? v_scale.data() : nullptr,
            .block_tables = block_tables.data(),
            .cu_seqlens_q = cu_seqlens_q.data(),
            .seqlens_kv = seqlens_kv.data(),
            .nodes = nodes.data(),
            .own_begin = own_begin.data(),
            .max_seqlen_q = max_seqlen_q(),
            .num_seqs = num_seqs(),
            .num_nodes = static_cast<int>(nodes.size()),
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

  // Start of the key (or value) at position `pos` of sequence `s`, as [num_blocks, num_kv_heads,
  // block_size, head_dim].
  int64_t KeyOffset(int s, int kv_head, int pos) const {
    const int64_t block = block_tables[int64_t{s} * max_blocks_ + pos / shape_.block_size];
    return ((block * shape_.num_kv_heads + kv_head) * shape_.block_size + pos % shape_.block_size) *
           shape_.head_dim;
  }

  // The caches as the op reads them.
  const std::vector<char>& k_bytes() const { return k_bytes_; }
  const std::vector<char>& v_bytes() const { return v_bytes_; }

  std::vector<float> q;                     // [num_tokens, q_stride]
  std::vector<int32_t> block_tables;        // [num_seqs, max_blocks]
  std::vector<int32_t> cu_seqlens_q = {0};  // [num_seqs + 1]
  std::vector<int32_t> seqlens_kv;          // [num_seqs]
  std::vector<SharedNode> nodes;
  std::vector<int32_t> own_begin;       // [num_seqs]
  std::vector<float> k_scale, v_scale;  // [num_kv_heads], or empty

 private:
  void MakeCache(Random& random, int num_blocks) {
    const int64_t block_elements =
        int64_t{shape_.num_kv_heads} * shape_.block_size * shape_.head_dim;
    k_.assign(num_blocks * block_elements, shape_.unused);
    v_ = k_;
    free_blocks_.resize(num_blocks);
    std::iota(free_blocks_.begin(), free_blocks_.end(), 0);
    std::shuffle(free_blocks_.begin(), free_blocks_.end(), random);
  }

  int32_t& BlockOf(int s, int pos) {
    return block_tables[int64_t{s} * max_blocks_ + pos / shape_.block_size];
  }

  void ShareBlocks(Random& random, const SharedNode& node) {
    if (node.seq_begin == node.seq_end) return;
    for (int key = node.key_begin; key < node.key_end; key += shape_.block_size) {
      const int32_t block = TakeBlock();
      FillBlock(random, block, shape_.block_size);
      for (int s = node.seq_begin; s < node.seq_end; ++s) BlockOf(s, key) = block;
    }
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
    k_bytes_.resize(k_.size() * SizeOf(shape_.kv_dtype));
    v_bytes_ = k_bytes_;
    for (int64_t i = 0; i < static_cast<int64_t>(k_.size()); ++i) {
      Narrow(k_[i], i, k_bytes_);
      Narrow(v_[i], shape_.kv_dtype == DType::kF8E4M3 ? TransposedOffset(i) : i, v_bytes_);
    }
  }

  // Where element i of [..., block_size, head_dim] lies in an e4m3 V cache.
  int64_t TransposedOffset(int64_t i) const {
    const int64_t head = i / shape_.head_dim / shape_.block_size, d = i % shape_.head_dim;
    const int row = static_cast<int>(i / shape_.head_dim % shape_.block_size);
    return (head * shape_.head_dim + d) * shape_.block_size + ValueColumn(row);
  }

  void Narrow(float x, int64_t i, std::vector<char>& to) const {
    if (shape_.kv_dtype == DType::kBF16) {
      reinterpret_cast<uint16_t*>(to.data())[i] = FloatToBF16(x);
    } else if (shape_.kv_dtype == DType::kF8E4M3) {
      reinterpret_cast<uint8_t*>(to.data())[i] = FloatToE4M3(x);
    } else {
      reinterpret_cast<float*>(to.data())[i] = x;
    }
  }

  std::vector<float> Run(PagedAttentionParams params) const {
    std::vector<float> o = EmptyOutput();
    params.o = o.data();
    cpu::PagedAttention(params);
    return o;
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
