#include "worker/sequence_blocks.h"

#include <algorithm>
#include <array>
#include <optional>

#include "common/check.h"

namespace bough {
namespace {

using BlockTokens = std::array<int32_t, kBlockSize>;

BlockTokens TokensOf(const Sequence& seq, int block_idx) {
  BlockTokens tokens;
  seq.CopyTokens(block_idx * kBlockSize, (block_idx + 1) * kBlockSize, tokens.data());
  return tokens;
}

int32_t AllocateOrDie(BlockManager* blocks) {
  const std::optional<int32_t> block = blocks->Allocate();
  CHECK(block.has_value()) << "room was promised; used " << blocks->num_used();
  return *block;
}

}  // namespace

std::vector<int32_t> FindPrefix(Sequence* seq, const BlockManager& blocks) {
  std::vector<int32_t> prefix;
  int32_t parent = kNoBlock;
  const int limit = (seq->num_tokens() - 1) / kBlockSize;
  for (int i = 0; i < limit; ++i) {
    const auto hit = blocks.Find(seq->Hash(i), parent, TokensOf(*seq, i));
    if (!hit) break;
    prefix.push_back(parent = *hit);
  }
  return prefix;
}

void TakeBlocks(Sequence* seq, const std::vector<int32_t>& prefix, BlockManager* blocks) {
  CHECK(seq->block_table.empty());
  for (int32_t block : prefix) blocks->Ref(block);
  seq->block_table = prefix;
  seq->num_cached_blocks = static_cast<int>(prefix.size());
  seq->num_computed = seq->num_cached_blocks * kBlockSize;
  while (static_cast<int>(seq->block_table.size()) < NumBlocks(seq->num_tokens())) {
    seq->block_table.push_back(AllocateOrDie(blocks));
  }
}

bool GrowBlocks(Sequence* seq, BlockManager* blocks) {
  while (static_cast<int>(seq->block_table.size()) < NumBlocks(seq->num_tokens())) {
    const std::optional<int32_t> block = blocks->Allocate();
    if (!block) return false;
    seq->block_table.push_back(*block);
  }
  return true;
}

void CacheFullBlocks(Sequence* seq, BlockManager* blocks) {
  const int end = std::min(seq->num_computed, seq->num_known());
  int& idx = seq->num_cached_blocks;
  while (!seq->cache_broken && (idx + 1) * kBlockSize <= end) {
    const int32_t parent = idx == 0 ? kNoBlock : seq->block_table[idx - 1];
    const auto kept =
        blocks->Cache(seq->block_table[idx], seq->Hash(idx), parent, TokensOf(*seq, idx));
    seq->cache_broken = !kept;
    if (kept) seq->block_table[idx++] = *kept;
  }
}

void ForkBlocks(const Sequence& leader, int num_prompt, Sequence* child, BlockManager* blocks) {
  CHECK(child->block_table.empty());
  CHECK_GE(leader.num_computed, num_prompt);
  const int num_full = num_prompt / kBlockSize;
  child->block_table.assign(leader.block_table.begin(), leader.block_table.begin() + num_full);
  for (int32_t block : child->block_table) blocks->Ref(block);
  child->num_cached_blocks = std::min(leader.num_cached_blocks, num_full);
  child->cache_broken = leader.cache_broken;
  child->num_computed = num_prompt;
  if (num_prompt % kBlockSize != 0) {
    child->copy_from = leader.block_table[num_full];
    blocks->Ref(child->copy_from);
    child->block_table.push_back(AllocateOrDie(blocks));
  }
}

void DropCopySource(Sequence* seq, BlockManager* blocks) {
  if (seq->copy_from == kNoBlock) return;
  blocks->Release({&seq->copy_from, 1});
  seq->copy_from = kNoBlock;
}

void ReleaseBlocks(Sequence* seq, BlockManager* blocks) {
  DropCopySource(seq, blocks);
  blocks->Release(seq->block_table);
  seq->block_table.clear();
  seq->num_computed = seq->num_cached_blocks = 0;
  seq->cache_broken = false;
}

}  // namespace bough
