// What an engine must keep to whatever it is asked, checked event by event: bench-soak's conscience.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "worker/engine.h"

namespace bough {

struct SoakCounts {
  int64_t requests = 0, tokens = 0, cancelled_requests = 0, cancelled_choices = 0;
  int64_t finished = 0, ended_cancelled = 0, ended_by_deadline = 0;
  int64_t rows_with_logprobs = 0, cached_tokens = 0, stopped_early = 0;
};

// Every request gets one Ack at most and one Done, after which nothing comes; every choice its tokens
// in order, once, each in range; it ends where its request says; logprobs are finite and descend.
class SoakCheck {
 public:
  explicit SoakCheck(const ModelLimits& limits) : limits_(limits) {}

  void Submitted(const Request& request);
  // Called when the engine was asked to: no token may follow.
  void Cancelled(const RequestKey& key, int32_t choice);  // -1: the whole request
  void CancelledLink(uint64_t link);
  void Observe(const StepEvents& events);

  // Prints the first ones to stderr, counts all.
  void Violation(const std::string& what);

  int num_live() const { return static_cast<int>(live_.size()); }
  // REQUIRES: 0 <= i < num_live().
  RequestKey LiveKey(int i) const;
  int NumChoices(const RequestKey& key) const;
  const SoakCounts& counts() const { return counts_; }
  int64_t num_violations() const { return num_violations_; }

 private:
  struct Choice {
    int32_t next_index = 0;
    bool ended = false, cancelled = false;
  };
  struct Live {
    SamplingParams sampling;
    int prompt_tokens = 0;
    std::map<int32_t, Choice> choices;
    int32_t num_generated = 0;
    bool acknowledged = false, cancelled = false, has_deadline = false;
  };
  using Key = std::pair<uint64_t, uint64_t>;  // link, handle
  static Key KeyOf(const RequestKey& key) { return {key.link, key.handle}; }

  void ObserveToken(const TokenEvent& token);
  void CheckFinish(const TokenEvent& token, const Live& live);
  void CheckLogprobs(const TokenEvent& token, const SamplingParams& sampling);
  void ObserveDone(const DoneEvent& done);

  const ModelLimits limits_;
  absl::btree_map<Key, Live> live_;
  SoakCounts counts_;
  int64_t num_violations_ = 0;
};

}  // namespace bough
