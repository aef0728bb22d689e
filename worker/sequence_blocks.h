// How a sequence takes, fills, shares and gives back its blocks.
//
// A sequence's token positions, as half-open ranges:
//
//   [0, num_cached)            in blocks of the prefix cache: full, read only, maybe shared
//   [num_cached, num_computed) written, in the open block, which is its own
//   [num_computed, num_tokens) to be computed: the rest of a prefill, or the last token
//   [num_tokens, num_room)     empty
//
// with num_cached = 64 * num_cached_blocks and num_room = 64 * block_table.size(). The second range
// holds whole blocks only after a hash collision, and one while its last token is pending. Written
// means by a step that is launched: whoever takes a cached block reads it in a later one.
//
// A step writes only positions from num_computed on, hence only into blocks of its own: no copy on
// write. The open block (the one that is not full) is never in the cache and never shared; a fork
// copies it once.
//
// A prefix hit gives at most the blocks before the last token, because a token must be computed to
// have logits. So a prompt of exactly 64 k tokens that is wholly cached takes k - 1 blocks and
// computes the last one again, into a block of its own, which Cache then swaps for the one that was
// there.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/block_manager.h"
#include "worker/sequence.h"

namespace bough {

inline int NumBlocks(int num_tokens) { return (num_tokens + kBlockSize - 1) / kBlockSize; }

// The cached blocks that `seq` (which has none) would start with. Takes no reference.
std::vector<int32_t> FindPrefix(Sequence* seq, const BlockManager& blocks);

// Starts a prefill on `prefix` plus new blocks for all other tokens. REQUIRES: there is room.
void TakeBlocks(Sequence* seq, const std::vector<int32_t>& prefix, BlockManager* blocks);

// Makes room for all tokens; false when a block is lacking.
bool GrowBlocks(Sequence* seq, BlockManager* blocks);

// Enters the blocks that are full of known and computed tokens into the prefix cache. To be called
// when either grew.
void CacheFullBlocks(Sequence* seq, BlockManager* blocks);

// Starts `child`, which has no blocks, where `leader` ended its prompt: shares the full blocks, and
// takes a block for a copy of the open one. REQUIRES: both have the same num_prompt first tokens,
// computed by leader; there is room.
void ForkBlocks(const Sequence& leader, int num_prompt, Sequence* child, BlockManager* blocks);

// The pending copy is done.
void DropCopySource(Sequence* seq, BlockManager* blocks);

// Gives everything back; full blocks stay in the prefix cache, but for one with a pending token.
void ReleaseBlocks(Sequence* seq, BlockManager* blocks);

}  // namespace bough
