// The requests that are in the engine: how they come in, and every way in which they end.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "worker/engine.h"
#include "worker/scheduler.h"
#include "worker/sequence.h"

namespace bough {

// Called only from the engine thread. Every request that is submitted ends in exactly one
// DoneEvent.
class LiveRequests {
 public:
  // Both outlive this.
  LiveRequests(const EngineConfig* config, Scheduler* scheduler)
      : config_(*config), scheduler_(scheduler) {}

  void Submit(Request request, absl::Time submitted, absl::Time now);
  void Cancel(const RequestKey& key, int32_t choice, absl::Time now);  // -1 = all of it
  void CancelLink(uint64_t link, absl::Time now);
  void ExpireDeadlines(absl::Time now);
  // The request ends with its last choice, and is then gone.
  void FinishChoice(Sequence* seq, absl::Time now);

  void set_draining(bool draining) { draining_ = draining; }
  bool draining() const { return draining_; }
  const absl::btree_map<uint64_t, std::unique_ptr<LiveRequest>>& all() const { return live_; }
  // nullptr when the sequence is finished; its request may be gone.
  Sequence* Find(const SequenceId& id) const;
  std::vector<DoneEvent> TakeDones();

 private:
  void Refuse(const Request& request, absl::Duration queue_time, absl::Status status,
              std::string reason, std::vector<FieldViolation> violations = {});
  void End(LiveRequest* request, absl::Time now, absl::Status status, std::string reason,
           std::string stage = "");
  BlockHash RootOf(const Request& request) const;

  const EngineConfig& config_;
  Scheduler* const scheduler_;
  bool draining_ = false;
  uint64_t num_arrivals_ = 0;
  absl::btree_map<uint64_t, std::unique_ptr<LiveRequest>> live_;  // by arrival
  absl::flat_hash_map<RequestKey, LiveRequest*> by_key_;
  std::vector<DoneEvent> dones_;
};

}  // namespace bough
