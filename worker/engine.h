// The only loop: plan a step, launch it, hand out the result of the oldest one. Where the executor
// takes two steps in flight, step k + 1 is planned and launched while step k runs.
//
//   while (!stopping) {
//     engine.WaitForWork(timeout);
//     if (auto events = engine.Step(clock.Now())) Publish(*events);
//   }
//
// The engine owns scheduler, block manager and all sequences. It holds no pointer to whoever
// publishes: results go up as return values. Time comes in from outside.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/block_hash.h"
#include "common/sampling_params.h"
#include "worker/batch.h"
#include "worker/block_manager.h"
#include "worker/prefix_forest.h"
#include "worker/request.h"

namespace bough {

struct EngineConfig {
  // Behaviour.
  std::string model_key;  // seeds the block hashes; same for every group of one deployment
  ModelLimits limits;
  bool enable_prefix_caching = true;  // false: requests share nothing; choices of one still do
  // Performance.
  int num_blocks = 0;                 // KV blocks of kBlockSize tokens
  int max_num_seqs = 256;             // rows per step; raise for many parallel samples
  int max_num_batched_tokens = 2048;  // tokens per step; bounds a decode row's wait behind prefills
  int max_waiting = 1024;             // requests; beyond it Submit ends in QUEUE_FULL
  ForestCosts forest_costs;           // of what rows of a step share
  // The clock of Step's `now`; thread-safe. Tests put their own here.
  std::function<absl::Time()> clock = [] { return absl::Now(); };
};

enum class Finish : uint8_t { kNone = 0, kEos = 1, kStopToken = 2, kLength = 3 };

struct AckEvent {
  RequestKey key;
  int32_t attempt = 0;
  int32_t cached_tokens = 0;
  int32_t shared_blocks = 0;
  absl::Duration queued;
};

struct TokenEvent {
  RequestKey key;
  int32_t attempt = 0;
  int32_t choice = 0;
  int32_t index = 0;  // position in the answer
  int32_t token = 0;
  float logprob = 0;
  std::vector<int32_t> top_ids;
  std::vector<float> top_logprobs;
  Finish finish = Finish::kNone;
};

// The request is over and its blocks are free. status OK: all choices finished.
struct DoneEvent {
  RequestKey key;
  int32_t attempt = 0;
  std::string request_id, traceparent;
  absl::Status status;
  std::string reason;  // "QUEUE_FULL", "DRAINING", "DEADLINE", "CANCELLED", "INVALID", "" when OK
  std::string stage;   // DEADLINE: "queue", "prefill" or "decode"
  std::vector<FieldViolation> violations;  // INVALID: at least one
  int32_t prompt_tokens = 0, cached_tokens = 0;
  int32_t generated_tokens = 0;  // here, by all choices
  absl::Duration queue_time, prefill_time, decode_time;
};

struct LoadReport {
  int running = 0, waiting = 0;  // requests
  int free_blocks = 0, cached_blocks = 0, used_blocks = 0, total_blocks = 0;
  int64_t active_unique_blocks = 0;  // held by running sequences, shared ones once
  double drain_seconds = 0;          // until what is queued now is prefilled
  // Fitted on line (worker/step_time.h), 0 until measured. A step takes about decode_step_seconds
  // + prefill_seconds_per_token * its tokens
  // + decode_seconds_per_block * the blocks that its decode rows read.
  double prefill_seconds_per_token = 0;
  double decode_step_seconds = 0;
  double decode_seconds_per_block = 0;
  int64_t preemptions = 0;  // since start
  bool draining = false;
};

// To be published in this order: a request's tokens precede its Done.
struct StepEvents {
  std::vector<AckEvent> acks;
  std::vector<TokenEvent> tokens;
  std::vector<DoneEvent> dones;
  CacheEvents cache;
  LoadReport load;
  // For metrics, of the step whose result came in (all 0 if none did): its tokens, and its time by
  // the engine's clock, since its launch or, if that was later, since the result before.
  int prefill_tokens = 0, decode_rows = 0, shared_prefix_rows = 0;
  absl::Duration step_time;
};

class Engine {
 public:
  // `executor` outlives the engine, which waits for what it launched even when it is destroyed.
  // REQUIRES: config.num_blocks > 0.
  Engine(const EngineConfig& config, StepExecutor* executor);
  ~Engine();

  // Thread-safe; they take effect at the next Step.
  void Submit(Request request);
  // choice -1 = the whole request. An unknown key or choice is ignored.
  void Cancel(const RequestKey& key, int32_t choice);
  void CancelLink(uint64_t link);   // the router's stream is gone
  void SetDraining(bool draining);  // new requests end in DRAINING

  // Thread-safe. Returns true as soon as Step would do something, false after `timeout`.
  bool WaitForWork(absl::Duration timeout);

  // Engine thread. Applies the inbox, expires deadlines, launches a step of the model if anything
  // can run. Then waits for the oldest step's result, unless one more may be launched before that.
  // nullopt: nothing happened at all, and nothing is in flight.
  std::optional<StepEvents> Step(absl::Time now);

  // Engine thread.
  LoadReport Load() const;

  // Engine thread. free + used + cached == total, every ref-count is explained by a sequence, no
  // block is in two places, every pending token is in flight. CHECKs; cheap enough for every test's
  // end.
  void CheckIntegrity() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bough
