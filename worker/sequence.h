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

//   state       blocks                           pending  next
//   waiting     none                             0        prefill; decode or ending, as a fork
//   prefill     for all its tokens               0        at the last chunk's launch: decode or
//                                                         ending; preempted
//   decode      for all its tokens but the last  0..2     decode; ending; preempted; finished
//   preempted   none, its tokens are kept        0..1     prefill when none is pending: recompute,
//                                                         mostly prefix hits; finished
//   ending      none: no step computes its last  1..2     finished when that one comes in
//   finished    none                             -        -
// Any state goes to finished by cancel or deadline.
//
// A token is pending from the launch of the step that samples it until that step's result. Of each
// step, with the one before still in flight:
//
//   launch   its rows are computed, as all later steps see it: blocks that are full and known enter
//            the prefix cache, forks start, a sampled row has one more pending token
//   result   the pending token is known: appended, sent up, its block cached if that fills it. It
//            may be a stop: the row of the step launched meanwhile is then superfluous
//   finish   by a stop, cancel, deadline: blocks are free at once, since later steps run later; what
//            is in flight for the sequence is dropped when it comes in
//   preempt  blocks are free at once; the pending token comes in and counts, as it was sampled from
//            what stood in them
enum class SequenceState : uint8_t { kWaiting, kPrefill, kDecode, kPreempted, kEnding, kFinished };

// Names a sequence to whoever may outlive it; see LiveRequests::Find.
struct SequenceId {
  uint64_t arrival = 0;  // LiveRequest::arrival
  int32_t ordinal = 0;   // Sequence::ordinal
};

struct Sequence {
  LiveRequest* request = nullptr;
  int32_t ordinal = 0;  // in request->sequences
  int32_t choice = 0;   // ChoiceStart::index
  SequenceState state = SequenceState::kWaiting;

  // The answer: what another group emitted, then what this one sampled.
  std::vector<int32_t> output;
  SeenTokens seen;  // of output, when the request has penalties
  // Tokens of the answer after `output`, sampled by steps in flight.
  int num_pending = 0;
  int32_t sampled_row = 0;  // of the latest pending token, in its step's Batch::samples

  // Set by sequence_blocks.h; its region table says which block holds what.
  std::vector<int32_t> block_table;
  int num_computed = 0;          // tokens whose KV is written by steps launched so far
  int num_cached_blocks = 0;     // leading blocks that are in the prefix cache
  bool cache_broken = false;     // a hash collision: what follows stays private
  int32_t copy_from = kNoBlock;  // the last block starts as a copy of this one, which is referenced
  std::vector<BlockHash> output_hashes;  // of full blocks after the prompt's

  bool running() const {
    return state == SequenceState::kPrefill || state == SequenceState::kDecode;
  }
  int num_known() const;  // tokens of prompt and answer whose values are known
  int num_tokens() const { return num_known() + num_pending; }
  int num_generated() const { return static_cast<int>(output.size()) + num_pending; }
  // The answer has max_tokens, whatever the pending ones will be. They fit max_model_len, or the
  // request was refused.
  bool is_full() const;
  void CopyTokens(int begin, int end, int32_t* out) const;  // known tokens [begin, end)
  // Of the full block `idx`, computed at first use.
  const BlockHash& Hash(int idx);
  void Append(int32_t token);  // a known one
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
