// What travels between router and group, as plain values: the core's view of link.proto. Translated
// in link_translation.cc and nowhere else.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/block_hash.h"
#include "common/sampling_params.h"
#include "router/request.h"

namespace bough::router {

// ---- from the group ----

struct GroupHello {
  std::string group;
  uint64_t epoch = 0;
  bool ready = false;
  std::string model_key;  // seeds the block hashes
  std::string device;
  int tp_size = 1, ep_size = 1;
  int block_size = 0;
  int total_blocks = 0;
  ModelLimits limits;
  std::string architecture;
  int num_local_experts = 0, num_experts_per_tok = 0;
};

struct RankProgress {
  int rank = 0;
  std::string phase;
  int64_t bytes_done = 0, bytes_total = 0;
};

struct CacheSyncReply {
  uint64_t number = 0, epoch = 0;
  bool resumed = false;  // the deltas after `seq` follow; else the contents of all buckets
  uint64_t seq = 0;
};

struct CacheDelta {
  uint64_t epoch = 0, seq = 0;
  std::vector<BlockHash> stored, removed;
  bool cleared = false;  // before stored and removed are applied
  uint64_t digest = 0;   // sum of DigestTerm over all cached hashes after this delta
};

// The same sum for each bucket, as of right after delta `seq`.
struct BucketDigests {
  uint64_t epoch = 0, seq = 0;
  std::vector<uint64_t> digests;  // [kNumDigestBuckets]
};

// All hashes of these buckets, as of right after delta `seq`.
struct BucketContents {
  uint64_t epoch = 0, seq = 0;
  std::vector<uint8_t> buckets;
  std::vector<BlockHash> hashes;
};

struct GroupLoad {
  int running = 0, waiting = 0;  // requests
  int free_blocks = 0, cached_blocks = 0;
  double drain_seconds = 0;              // until what is queued now is prefilled
  double prefill_seconds_per_token = 0;  // 0 = not fitted yet, as the two below
  double decode_step_seconds = 0;
  double decode_seconds_per_block = 0;  // of a decode step, per KV block read
  int64_t active_unique_blocks = 0;
  bool draining = false;
  int64_t preemptions = 0;
  uint64_t epoch = 0;
  uint64_t cache_seq = 0, cache_digest = 0;  // of the last delta
  uint64_t submits = 0;                      // received on this stream, all counted above
};

// The request was admitted to its first step.
struct Ack {
  uint64_t handle = 0;
  int attempt = 0;
  int cached_tokens = 0;
  int shared_blocks = 0;
  double queue_seconds = 0;  // there
};

// The request was not taken: the group's queue is much longer than its router expected.
struct Refused {
  uint64_t handle = 0;
  int attempt = 0;
  GroupLoad load;
};

enum class TokenFinish : uint8_t { kNone, kEos, kStopToken, kLength };

struct TokenRow {
  uint64_t handle = 0;
  int attempt = 0;
  int choice = 0;
  int index = 0;  // position in the choice's answer, from 0
  int32_t token = 0;
  float logprob = 0;
  std::vector<int32_t> top_ids;
  std::vector<float> top_logprobs;
  TokenFinish finish = TokenFinish::kNone;
};

struct StepOutput {
  std::vector<TokenRow> rows;
};

// Nothing more will come for this handle.
struct Done {
  uint64_t handle = 0;
  int attempt = 0;
  absl::StatusCode code = absl::StatusCode::kOk;
  std::string message, reason, stage;
  std::vector<std::string> violations;  // "field: description"
};

using GroupEvent = std::variant<GroupHello, RankProgress, CacheSyncReply, CacheDelta, BucketDigests,
                                BucketContents, GroupLoad, Ack, Refused, StepOutput, Done>;

// ---- to the group ----

struct ChoiceStart {
  int index = 0;
  std::vector<int32_t> emitted;  // what the client already has of it
};

struct SubmitCommand {
  uint64_t handle = 0;
  std::string group;  // as it calls itself
  uint64_t epoch = 0;
  int attempt = 0;
  std::shared_ptr<const Request> request;
  std::vector<ChoiceStart> choices;
  absl::Duration timeout = absl::InfiniteDuration();  // left at the moment of sending
  // The group may answer Refused when its queue is much longer than this. nullopt: it must not.
  std::optional<double> expected_wait_seconds = {};
  int expected_cached_tokens = 0;
};

struct CancelCommand {
  uint64_t handle = 0;
  int choice = -1;  // -1 = all of them
};

// (0, 0) = nothing is held.
struct CacheSyncCommand {
  uint64_t number = 0, epoch = 0, seq = 0;
};

struct DigestsCommand {
  uint64_t epoch = 0;
};

struct BucketsCommand {
  uint64_t epoch = 0;
  std::vector<uint8_t> buckets;
};

struct DrainCommand {
  bool on = true;
};

using GroupCommand = std::variant<SubmitCommand, CancelCommand, CacheSyncCommand, DigestsCommand,
                                  BucketsCommand, DrainCommand>;

}  // namespace bough::router
