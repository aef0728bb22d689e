// One batch of bench-kernels-attention on the GPU: its arrays, its time, its error.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "bench/attention_cases.h"
#include "bench/attention_error.h"
#include "kernels/attention.h"
#include "kernels/dtype.h"

namespace bough {

// Memory of the current GPU.
class GpuMemory {
 public:
  explicit GpuMemory(int64_t num_bytes);
  ~GpuMemory();
  GpuMemory(const GpuMemory&) = delete;
  GpuMemory& operator=(const GpuMemory&) = delete;

  char* data() const { return static_cast<char*>(data_); }
  int64_t num_bytes() const { return num_bytes_; }
  // Normally distributed elements (mean 0, variance 1) of bf16 or e4m3, as many as fit.
  void FillNormal(DType dtype) const;

 private:
  void* data_ = nullptr;
  const int64_t num_bytes_;
};

class AttentionRun {
 public:
  // `kv` holds caches of several layers, of the case's type, and outlives the run.
  AttentionRun(const AttentionCase& c, const GpuMemory& kv);
  ~AttentionRun();

  // Median time of a layer's attention, in us, in a CUDA graph of launches that take the layers in
  // turn: more bytes than the L2 cache holds. The plan is made before. Without nodes: the same
  // batch as if its sequences shared nothing.
  double LayerUs(bool with_nodes = true);
  // Median time of PlanAttention, in us, in a graph of its own.
  double PlanUs();
  // Root mean square, over some rows of o, of |o - reference| / |reference|: o of a launch of its
  // own, the reference in f64 of q and the cache as they are stored.
  double RelativeError();

 private:
  struct Arrays;
  PagedAttentionParams Params(int layer, bool with_nodes) const;
  void Attend(const PagedAttentionParams& p, Stream stream) const;
  CachedKeys ReadKeys(int seq, int kv_head) const;
  double SquaredError(const CachedKeys& keys, int64_t token, int num_keys, int head) const;

  const AttentionCase& case_;
  const GpuMemory& kv_;
  int max_blocks_ = 0, num_layers_ = 0;
  int64_t layer_bytes_ = 0;
  std::vector<int32_t> block_tables_;  // [num_seqs, max_blocks]
  std::unique_ptr<Arrays> arrays_;
};

}  // namespace bough
