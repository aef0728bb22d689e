// A request while it lives in the engine, and its sequences: one per choice.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/time/time.h"
#include "common/block_hash.h"
#include "worker/block_manager.h"
#include "worker/request.h"
#include "worker/seen_tokens.h"

namespace bough {

struct LiveRequest;

//   state       blocks                              next
//   waiting     none                                prefill; decode, as a fork of a sibling
//   prefill     for all its tokens                  decode when all are computed; preempted
//   decode      for all its tokens but the last     decode; preempted; finished
//   preempted   none, its tokens are kept           prefill: recompute, mostly prefix hits
//   finished    none                                -
// Any state goes to finished by cancel or deadline.
enum class SequenceState : uint8_t { kWaiting, kPrefill, kDecode, kPreempted, kFinished };

struct Sequence {
  LiveRequest* request = nullptr;
  int32_t ordinal = 0;  // in request->sequences
  int32_t choice = 0;   // ChoiceStart::index
  SequenceState state = SequenceState::kWaiting;

  // The answer: what another group emitted, then what this one sampled.
  std::vector<int32_t> output;
  SeenTokens seen;  // of output, when the request has penalties

  // Set by sequence_blocks.h; its region table says which block holds what.
  std::vector<int32_t> block_table;
  int num_computed = 0;          // tokens whose KV is written
  int num_cached_blocks = 0;     // leading blocks that are in the prefix cache
  bool cache_broken = false;     // a hash collision: what follows stays private
  int32_t copy_from = kNoBlock;  // the last block starts as a copy of this one, which is referenced
  std::vector<BlockHash> output_hashes;  // of full blocks after the prompt's

  bool running() const {
    return state == SequenceState::kPrefill || state == SequenceState::kDecode;
  }
  int num_tokens() const;
  void CopyTokens(int begin, int end, int32_t* out) const;  // tokens [begin, end)
  // Of the full block `idx`, computed at first use.
  const BlockHash& Hash(int idx);
  void Append(int32_t token);
};

struct LiveRequest {
  LiveRequest(Request request, const BlockHash& root, uint64_t arrival, absl::Time submitted);
  LiveRequest(const LiveRequest&) = delete;

  const Request request;
  const BlockHash root;
  const uint64_t arrival;  // order of Submit
  const absl::Time submitted;
  const bool has_penalties;
  const std::vector<BlockHash> prompt_hashes;
  const std::vector<int32_t> prompt_vocabulary;  // SeenTokens::Distinct; empty without penalties
  std::vector<Sequence> sequences;               // as request.choices; never resized

  // Set by the scheduler. Ordinals of sequences without blocks: `fresh` have no token yet and can
  // be forked off the leader's prefill, `stalled` have tokens to recompute.
  absl::btree_set<int32_t> fresh, stalled;
  Sequence* leader = nullptr;  // the fresh sequence in prefill, if any
  bool was_admitted = false;
  int32_t cached_tokens = 0;  // prefix hit of the first admission

  // Set by the engine.
  absl::Time first_scheduled = absl::InfiniteFuture();
  absl::Time first_token = absl::InfiniteFuture();
  int32_t generated_tokens = 0;  // by this group
  int num_unfinished = 0;
};

// Who goes first: priority, then arrival, then the choice's place.
bool GoesBefore(const LiveRequest& a, const LiveRequest& b);
bool GoesBefore(const Sequence& a, const Sequence& b);

}  // namespace bough
