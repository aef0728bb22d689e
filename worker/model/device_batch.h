// A batch where the device can read it.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/attention.h"
#include "kernels/sampling.h"
#include "worker/batch.h"
#include "worker/model/device.h"
#include "worker/model/device_buffer.h"

namespace bough {

// Sizes are the host's knowledge, arrays are as Batch has them. A padded batch ends in decode rows
// that stand for nothing: slot -1, no keys, no copy, and a sample that nobody reads; and in nodes
// that hold no rows.
struct DeviceBatch {
  int num_tokens = 0, num_seqs = 0, num_decode = 0, num_nodes = 0, max_blocks = 0;
  int max_seqlen_q = 0;
  int num_logits_rows = 0, num_samples = 0, max_top = 0, num_copies = 0;
  bool any_shared = false;  // some node stands for something
  const int32_t *tokens = nullptr, *positions = nullptr, *slot_mapping = nullptr;
  const int32_t *cu_seqlens_q = nullptr, *seqlens_kv = nullptr, *block_tables = nullptr;
  const SharedNode* nodes = nullptr;
  const int32_t* own_begin = nullptr;
  const int32_t *logits_tokens = nullptr, *copy_src = nullptr, *copy_dst = nullptr;
  const SamplingRow* samples = nullptr;
  const int32_t *bias_ids = nullptr, *seen_ids = nullptr, *seen_counts = nullptr;
  const int32_t* banned_ids = nullptr;
  const float* bias_values = nullptr;

  // Every token's logits are asked for, in order: a decode step.
  bool all_logits() const { return num_logits_rows == num_tokens; }
};

// Device memory for one batch at a time, and host memory for two, so that the next batch can be
// written while the last one is still being copied.
class BatchMemory {
 public:
  explicit BatchMemory(Device* device) : device_(device) {}
  ~BatchMemory();
  BatchMemory(const BatchMemory&) = delete;
  BatchMemory& operator=(const BatchMemory&) = delete;

  // On the CPU the batch is where it has to be already: `batch` must stay until it has run. On CUDA
  // it is copied; the memory grows when a batch is larger than any before.
  // REQUIRES: the batch before the last one has run.
  DeviceBatch Upload(const Batch& batch);

 private:
  void Reserve(int64_t num_bytes);

  Device* const device_;
  DeviceBuffer on_device_;
  int64_t capacity_ = 0;
  void* on_host_[2] = {nullptr, nullptr};
  int next_ = 0;
};

// As BatchMemory, for decode steps of up to a fixed size: arrays of a batch padded to `num_rows` rows
// always lie at the same addresses, so that a recorded graph finds them.
class PaddedBatchMemory {
 public:
  PaddedBatchMemory(Device* device, int max_num_rows, int max_blocks);
  ~PaddedBatchMemory();
  PaddedBatchMemory(const PaddedBatchMemory&) = delete;
  PaddedBatchMemory& operator=(const PaddedBatchMemory&) = delete;

  // Whether the batch is a decode step without block copies whose arrays fit.
  bool Fits(const Batch& batch) const;
  // REQUIRES: Fits(batch), batch.num_seqs() <= num_rows <= max_num_rows; the batch before the last
  // one has run.
  DeviceBatch Upload(const Batch& batch, int num_rows);

 private:
  Device* const device_;
  const int max_num_rows_, max_blocks_;
  DeviceBuffer on_device_;
  void* on_host_[2];
  int next_ = 0;
};

}  // namespace bough
