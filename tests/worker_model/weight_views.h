// Weights as numbers, whatever they are stored in; on the CPU.
#pragma once

#include <gtest/gtest.h>

#include "worker/model/checkpoint.h"
#include "worker/model/weights.h"

namespace bough::testing {

// Element i of a weight of `cols` columns, its row's scale multiplied in.
inline float At(const Weight& weight, int64_t i, int64_t cols) {
  switch (weight.dtype) {
    case DType::kF32:
      return static_cast<const float*>(weight.data)[i];
    case DType::kBF16:
      return BF16ToFloat(static_cast<const uint16_t*>(weight.data)[i]);
    default:
      return E4M3ToFloat(static_cast<const uint8_t*>(weight.data)[i]) * weight.scale[i / cols];
  }
}

// `width` elements of row `a_row` from column `a_col` on are those of `b`, bit by bit. The matrices
// have `a_cols` and `b_cols` columns.
inline void ExpectSameRow(const Weight& a, int64_t a_row, int64_t a_col, int64_t a_cols,
                          const Weight& b, int64_t b_row, int64_t b_col, int64_t b_cols,
                          int64_t width) {
  for (int64_t i = 0; i < width; ++i) {
    ASSERT_EQ(At(a, a_row * a_cols + a_col + i, a_cols), At(b, b_row * b_cols + b_col + i, b_cols))
        << "row " << a_row << ", column " << i;
  }
}

struct LoadedShard {
  std::unique_ptr<Device> device = MakeCpuDevice();
  Weights weights;
};

inline LoadedShard LoadShard(const ModelConfig& config, const WeightSource& source, bool quantize,
                             int tp, int ep, int rank) {
  LoadedShard loaded;
  auto weights = LoadWeights(config, *MakeShard(config, tp, ep, rank), source, quantize,
                             loaded.device.get(), [](auto, auto) {});
  EXPECT_TRUE(weights.ok()) << weights.status();
  loaded.weights = *std::move(weights);
  return loaded;
}

// Every rank's slices of layer `layer` are the parts of the whole that README.md of worker/model
// says they are.
inline void ExpectShardsAreCutFromTheWhole(const ModelConfig& c, const WeightSource& source,
                                           bool quantize, int tp, int ep) {
  const LoadedShard full = LoadShard(c, source, quantize, 1, 1, 0);
  const int64_t hidden = c.hidden_size, inter = c.intermediate_size, d = c.head_dim;
  const int64_t q_size = c.num_attention_heads * d, kv_size = c.num_key_value_heads * d;
  for (int rank = 0; rank < tp * ep; ++rank) {
    const Shard s = *MakeShard(c, tp, ep, rank);
    const LoadedShard part = LoadShard(c, source, quantize, tp, ep, rank);
    for (int layer = 0; layer < c.num_hidden_layers; ++layer) {
      const LayerWeights &p = part.weights.layers[layer], &w = full.weights.layers[layer];
      const auto same_rows = [&](const Weight& a, int64_t a_row, const Weight& b, int64_t b_row,
                                 int64_t num_rows) {
        for (int64_t i = 0; i < num_rows; ++i) {
          ExpectSameRow(a, a_row + i, 0, hidden, b, b_row + i, 0, hidden, hidden);
        }
      };
      const int64_t q_rows = s.num_heads() * d, kv_rows = s.num_kv_heads() * d;
      same_rows(p.qkv, 0, w.qkv, s.heads.begin * d, q_rows);
      same_rows(p.qkv, q_rows, w.qkv, q_size + s.kv_heads.begin * d, kv_rows);
      same_rows(p.qkv, q_rows + kv_rows, w.qkv, q_size + kv_size + s.kv_heads.begin * d, kv_rows);
      for (int64_t row = 0; row < hidden; ++row) {
        ExpectSameRow(p.o, row, 0, q_rows, w.o, row, s.heads.begin * d, q_size, q_rows);
      }
      const int64_t width = s.intermediate_size(), begin = s.intermediate.begin;
      for (int64_t e = 0; e < s.num_experts(); ++e) {
        const int64_t global = s.experts.begin + e;
        same_rows(p.gate_up, e * 2 * width, w.gate_up, global * 2 * inter + begin, width);
        same_rows(p.gate_up, e * 2 * width + width, w.gate_up, global * 2 * inter + inter + begin,
                  width);
        for (int64_t row = 0; row < hidden; ++row) {
          ExpectSameRow(p.down, e * hidden + row, 0, width, w.down, global * hidden + row, begin,
                        inter, width);
        }
      }
    }
  }
}

}  // namespace bough::testing
