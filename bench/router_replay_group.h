// A worker group in simulated time: FIFO chunked prefill, batched decode, finite KV.
//
// A step computes one token per decoding row and a chunk of prompt tokens, first come first served, up
// to `chunk_tokens` together:
//
//   seconds = max(weights_seconds, tokens * token_seconds + pairs * pair_seconds)
//             + kv_token_seconds * (unique context tokens of decoding rows + their answers' tokens)
//
// A context that several rows share is read once (bifurcated attention).
#pragma once

#include <cstdint>
#include <deque>
#include <queue>
#include <span>
#include <vector>

#include "bench/router_replay_cache.h"
#include "bench/router_replay_trace.h"
#include "router/coefficients.h"
#include "worker/step_time.h"

namespace bough {

// The defaults are the study's 7,000 prompt tokens/s and 6,000 blocks, and Mixtral 8x7B in FP8 on one
// H200: 47 GB of weights and 64 KiB of KV a token at 4 TB/s.
struct ReplayGroupModel {
  double token_seconds = 1.0 / 7000;
  double pair_seconds = 0;  // a prompt token's attention to one token before it
  double weights_seconds = 0.012;
  double kv_token_seconds = 1.6e-8;
  int chunk_tokens = 512;
  int kv_blocks = 6000;
};

// What the group tells routers: worker/engine.cc's LoadReport.
struct ReplayLoad {
  double drain_seconds = 0;
  double queued_tokens = 0;
  int running = 0, waiting = 0;  // requests
  int rows = 0;                  // choices of all of them
  int free_blocks = 0, used_blocks = 0;
  double prefill_seconds_per_token = 0;
  int64_t active_unique_blocks = 0;     // of 64 tokens, read in a step
  double decode_seconds_per_block = 0;  // of common/block_hash.h's 64 tokens
  double busy_share = 0;
};

struct ReplayEvent {
  enum class Kind { kFirstToken, kDone };
  Kind kind = Kind::kFirstToken;
  int request = 0;
  double at = 0;
  int uncached = 0, cached = 0;  // tokens, of kFirstToken, as the two below
  double rows = 0;               // that decoded beside it, mean over its steps
  double prefill_seconds = 0;
};

class ReplayGroup {
 public:
  ReplayGroup(const ReplayGroupModel& model, const ReplayTrace& trace);

  // Runs every step that ends at or before `t`.
  void AdvanceTo(double t);
  // REQUIRES: AdvanceTo(t) was called.
  void Submit(int request, double t);
  ReplayLoad Load(double t) const;
  int Match(std::span<const int> chain) const { return cache_.Match(chain); }
  bool idle() const { return !in_step_; }

  std::vector<ReplayEvent> TakeEvents();
  int64_t computed_tokens() const { return computed_tokens_; }
  int64_t num_hit_blocks() const { return num_hit_blocks_; }

 private:
  struct Prefill {
    int request = 0;
    int expected_uncached = 0;  // while it waits
    bool started = false;
    int matched_blocks = 0, stored_blocks = 0, private_blocks = 0;
    int cached = 0, done = 0;  // tokens of the prompt
    double begin = 0;
    double rows_sum = 0;
    int num_steps = 0;
  };
  struct Row {
    int64_t last_step = 0;
    int request = 0;
    int private_blocks = 0;
    bool operator>(const Row& o) const { return last_step > o.last_step; }
  };

  bool Begin(Prefill* p);
  void StartStep();
  void EndStep();
  void EndPrefill(const Prefill& p);
  void EndRow(const Row& row);
  void CountDecoding(std::span<const int> chain, int change);

  const ReplayGroupModel model_;
  const ReplayTrace& trace_;
  ReplayCache cache_;
  StepTimeModel step_time_;
  std::deque<Prefill> queue_;  // the first ones are in the current step
  std::priority_queue<Row, std::vector<Row>, std::greater<Row>> rows_;
  std::vector<uint16_t> decoding_;  // requests that decode, by block id
  int64_t num_decoding_blocks_ = 0;
  int64_t answer_tokens_ = 0;  // of decoding rows
  int num_rows_ = 0;

  bool in_step_ = false;
  int64_t step_ = 0;
  double step_begin_ = 0, step_end_ = 0;
  struct Chunk {
    int begin = 0, tokens = 0;
  };
  std::vector<Chunk> chunks_;  // of queue_'s first requests
  int step_tokens_ = 0;
  int64_t step_kv_tokens_ = 0;

  std::vector<ReplayEvent> events_;
  int64_t computed_tokens_ = 0, num_hit_blocks_ = 0;
  router::BusyShare busy_;
  double busy_at_ = 0;
};

}  // namespace bough
