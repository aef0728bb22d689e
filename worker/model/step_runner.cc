#include "worker/model/step_runner.h"

#include <algorithm>
#include <cstring>

#include "common/check.h"

namespace bough {
namespace {

constexpr int kMaxTop = 20;  // columns of the arrays of likeliest tokens: requests' max_logprobs

// Decode steps are padded to the next of these: every size up to 8, where a row more is another
// expert's weights, then steps that waste a quarter at most.
constexpr int kGraphRows[] = {1,   2,   3,   4,   5,   6,   7,   8,   10,   12,   14,   16,  20,
                              24,  28,  32,  40,  48,  56,  64,  80,  96,   112,  128,  160, 192,
                              224, 256, 320, 384, 448, 512, 640, 768, 1024, 1280, 1536, 2048};

// Result arrays in host memory, each at its place for the largest step.
struct ResultView {
  ResultView(void* memory, int64_t max_samples)
      : tokens(static_cast<int32_t*>(memory)),
        logprobs(reinterpret_cast<float*>(tokens + max_samples)),
        top_ids(reinterpret_cast<int32_t*>(logprobs + max_samples)),
        top_logprobs(reinterpret_cast<float*>(top_ids + max_samples * kMaxTop)) {}

  static int64_t NumBytes(int64_t max_samples) { return 4 * max_samples * (2 + 2 * kMaxTop); }

  int32_t* tokens;
  float* logprobs;
  int32_t* top_ids;
  float* top_logprobs;
};

}  // namespace

StepRunner::StepRunner(const StepRunnerOptions& options, Device* device, Decoder* decoder,
                       Communicator* comm)
    : options_(options), device_(device), decoder_(decoder), comm_(comm), memory_(device) {
  tokens_ = DeviceBuffer::Scratch(device, max_samples(), DType::kI32);
  logprobs_ = DeviceBuffer::Scratch(device, max_samples(), DType::kF32);
  top_ids_ = DeviceBuffer::Scratch(device, max_samples() * kMaxTop, DType::kI32);
  top_logprobs_ = DeviceBuffer::Scratch(device, max_samples() * kMaxTop, DType::kF32);
  for (Flight& flight : flights_) {
    flight.done = device->NewEvent();
    flight.results = device->AllocateHost(ResultView::NumBytes(max_samples()));
  }
}

StepRunner::~StepRunner() {
  device_->Synchronize();
  for (Flight& flight : flights_) device_->FreeHost(flight.results);
}

void StepRunner::RecordGraphs() {
  if (!device_->is_cuda()) return;
  const int max_rows = std::min(options_.max_num_seqs, kGraphRows[std::size(kGraphRows) - 1]);
  padded_ = std::make_unique<PaddedBatchMemory>(device_, max_rows, options_.max_blocks);
  for (auto rows = std::rbegin(kGraphRows); rows != std::rend(kGraphRows); ++rows) {
    const int num_rows = std::min(*rows, max_rows);
    for (const bool bifurcates : {false, true}) {
      if (graphs_.contains({num_rows, bifurcates})) continue;
      DeviceBatch batch = padded_->Upload(Batch(), num_rows);
      batch.any_shared = bifurcates;
      if (decoder_->Bifurcates(batch) != bifurcates) continue;
      Run(batch);  // kernels are loaded at their first launch, which a recording does not allow
      graphs_[{num_rows, bifurcates}] = device_->Capture([&] { Run(batch); });
      device_->Synchronize();
    }
  }
}

void StepRunner::Run(const DeviceBatch& batch) {
  const float* const logits = decoder_->Forward(batch, tokens_.as<int32_t>());
  if (options_.samples && batch.num_samples > 0) {
    device_->ops().Sample({.logits = logits,
                           .rows = batch.samples,
                           .bias_ids = batch.bias_ids,
                           .bias_values = batch.bias_values,
                           .seen_ids = batch.seen_ids,
                           .seen_counts = batch.seen_counts,
                           .banned_ids = batch.banned_ids,
                           .tokens = tokens_.as<int32_t>(),
                           .logprobs = logprobs_.as<float>(),
                           .top_ids = top_ids_.as<int32_t>(),
                           .top_logprobs = top_logprobs_.as<float>(),
                           .num_rows = batch.num_samples,
                           .vocab_size = options_.vocab_size,
                           .max_top = kMaxTop},
                          device_->stream());
  }
  // The other ranks' next step embeds them too; where steps do not overlap, rank 0 sends them by then.
  if (options_.num_ranks > 1 && max_steps_in_flight() > 1) {
    comm_->Broadcast(tokens_.as<int32_t>(), batch.num_samples);
  }
}

void StepRunner::Launch(const Batch& batch) {
  CHECK_LT(num_launched_ - num_waited_, max_steps_in_flight());
  CHECK_LE(batch.samples.size(), static_cast<size_t>(max_samples()));
  CHECK_LE(batch.max_top, kMaxTop);
  if (padded_ != nullptr && padded_->Fits(batch)) {
    const int num_rows =
        std::min(*std::lower_bound(std::begin(kGraphRows), std::end(kGraphRows), batch.num_seqs()),
                 options_.max_num_seqs);
    const DeviceBatch padded = padded_->Upload(batch, num_rows);
    graphs_.at({num_rows, decoder_->Bifurcates(padded)})->Launch();
  } else {
    Run(memory_.Upload(batch));
  }
  Fetch(batch, &flights_[num_launched_++ % 2]);
}

// Results to the host, in the order of the stream.
void StepRunner::Fetch(const Batch& batch, Flight* flight) {
  flight->num_samples = options_.samples ? static_cast<int>(batch.samples.size()) : 0;
  flight->max_top = batch.max_top;
  flight->has_logprobs = std::any_of(batch.samples.begin(), batch.samples.end(),
                                     [](const SamplingRow& row) { return row.num_logprobs >= 0; });
  const ResultView host(flight->results, max_samples());
  const int64_t row_bytes = 4, top_bytes = 4 * kMaxTop, num_samples = flight->num_samples;
  if (num_samples > 0) device_->CopyToHost(host.tokens, tokens_.data(), num_samples * row_bytes);
  if (num_samples > 0 && flight->has_logprobs) {
    device_->CopyToHost(host.logprobs, logprobs_.data(), num_samples * row_bytes);
    device_->CopyToHost(host.top_ids, top_ids_.data(), num_samples * top_bytes);
    device_->CopyToHost(host.top_logprobs, top_logprobs_.data(), num_samples * top_bytes);
  }
  flight->done->Record();
}

StepResult StepRunner::Wait() {
  CHECK_LT(num_waited_, num_launched_);
  const Flight& flight = flights_[num_waited_++ % 2];
  flight.done->Wait();
  const ResultView host(flight.results, max_samples());
  StepResult result;
  result.tokens.assign(host.tokens, host.tokens + flight.num_samples);
  result.logprobs.resize(flight.num_samples);
  result.top_ids.resize(int64_t{flight.num_samples} * flight.max_top);
  result.top_logprobs.resize(result.top_ids.size());
  if (!flight.has_logprobs) return result;
  std::copy_n(host.logprobs, flight.num_samples, result.logprobs.begin());
  for (int64_t row = 0; row < flight.num_samples; ++row) {
    std::copy_n(host.top_ids + row * kMaxTop, flight.max_top,
                result.top_ids.begin() + row * flight.max_top);
    std::copy_n(host.top_logprobs + row * kMaxTop, flight.max_top,
                result.top_logprobs.begin() + row * flight.max_top);
  }
  return result;
}

}  // namespace bough
