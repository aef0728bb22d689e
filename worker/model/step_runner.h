// Runs batches one after the other: host to device, decoder, sampling, results back. Decode steps
// replay CUDA graphs; nothing is allocated and nothing waits for the device inside a step.
#pragma once

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "worker/batch.h"
#include "worker/comm/communicator.h"
#include "worker/model/decoder.h"
#include "worker/model/device.h"
#include "worker/model/device_batch.h"
#include "worker/model/device_buffer.h"

namespace bough {

struct StepRunnerOptions {
  bool samples = true;  // this rank has the logits
  int num_ranks = 1;
  int vocab_size = 0;
  int max_num_seqs = 0;  // rows of a batch, and samples
  int max_blocks = 0;    // of a sequence
};

// Called only from the thread that runs batches.
class StepRunner {
 public:
  // `device`, `decoder` and `comm` outlive it.
  StepRunner(const StepRunnerOptions& options, Device* device, Decoder* decoder,
             Communicator* comm);
  ~StepRunner();

  // Records the decode steps of every size, as graphs; without it all steps are launched op by op.
  // Collective. Nothing where graphs bring nothing (the CPU).
  void RecordGraphs();

  // As StepExecutor's. Ranks that do not sample call Wait too; its result is empty.
  void Launch(const Batch& batch);
  StepResult Wait();
  int max_steps_in_flight() const { return device_->is_cuda() ? 2 : 1; }

 private:
  // One of the two steps that may be under way.
  struct Flight {
    std::unique_ptr<DeviceEvent> done;
    void* results = nullptr;  // host memory: tokens, logprobs, top ids, top logprobs
    int num_samples = 0, max_top = 0;
    bool has_logprobs = false;
  };

  void Run(const DeviceBatch& batch);
  void Fetch(const Batch& batch, Flight* flight);
  int64_t max_samples() const { return options_.max_num_seqs; }

  const StepRunnerOptions options_;
  Device* const device_;
  Decoder* const decoder_;
  Communicator* const comm_;
  BatchMemory memory_;
  std::unique_ptr<PaddedBatchMemory> padded_;
  // By number of rows, and whether prefixes are read bifurcated.
  std::map<std::pair<int, bool>, std::unique_ptr<LaunchGraph>> graphs_;

  // On the device.
  DeviceBuffer tokens_;        // [max_samples] i32; the next step's Embedding reads them
  DeviceBuffer logprobs_;      // [max_samples]
  DeviceBuffer top_ids_;       // [max_samples, kMaxTop] i32
  DeviceBuffer top_logprobs_;  // as top_ids_

  Flight flights_[2];
  int num_launched_ = 0, num_waited_ = 0;
};

}  // namespace bough
