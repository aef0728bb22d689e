#include "worker/block_manager.h"

#include <algorithm>

#include "common/check.h"

namespace bough {

BlockManager::BlockManager(int num_blocks)
    : num_blocks_(num_blocks),
      blocks_(num_blocks + 1),
      tokens_(static_cast<size_t>(num_blocks) * kBlockSize) {
  CHECK_GT(num_blocks, 0);
  free_.reserve(num_blocks);
  for (int32_t b = num_blocks - 1; b >= 0; --b) free_.push_back(b);
  blocks_[num_blocks].older = blocks_[num_blocks].younger = num_blocks;
}

std::optional<int32_t> BlockManager::Allocate() {
  int32_t block;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else if (num_cached_ > 0) {
    block = blocks_[num_blocks_].younger;  // the ring's anchor stands before the oldest
    Unlink(block);
    index_.erase(blocks_[block].hash);
    log_.emplace_back(blocks_[block].hash, -1);
    blocks_[block].in_cache = false;
  } else {
    return std::nullopt;
  }
  blocks_[block].ref = 1;
  return block;
}

void BlockManager::Ref(int32_t block) {
  Block& b = blocks_[block];
  if (b.ref == 0) {
    CHECK(b.in_cache) << "block " << block << " is free";
    Unlink(block);
  }
  ++b.ref;
}

void BlockManager::Release(std::span<const int32_t> table) {
  for (auto it = table.rbegin(); it != table.rend(); ++it) {
    Block& b = blocks_[*it];
    CHECK_GT(b.ref, 0) << "block " << *it;
    if (--b.ref > 0) continue;
    if (b.in_cache) {
      LinkYoungest(*it);
    } else {
      free_.push_back(*it);
    }
  }
}

std::optional<int32_t> BlockManager::Find(const BlockHash& hash, int32_t parent,
                                          std::span<const int32_t> tokens) const {
  const auto it = index_.find(hash);
  if (it == index_.end() || !Holds(it->second, parent, tokens)) return std::nullopt;
  return it->second;
}

std::optional<int32_t> BlockManager::Cache(int32_t block, const BlockHash& hash, int32_t parent,
                                           std::span<const int32_t> tokens) {
  CHECK_EQ(tokens.size(), static_cast<size_t>(kBlockSize));
  CHECK(parent == kNoBlock || blocks_[parent].in_cache) << "parent " << parent;
  Block& b = blocks_[block];
  CHECK(b.ref > 0 && !b.in_cache) << "block " << block << " ref " << b.ref;
  const auto [it, inserted] = index_.try_emplace(hash, block);
  if (!inserted) {
    const int32_t twin = it->second;
    if (!Holds(twin, parent, tokens)) return std::nullopt;
    Ref(twin);
    Release({&block, 1});
    return twin;
  }
  b.in_cache = true;
  b.parent = parent;
  b.hash = hash;
  std::copy(tokens.begin(), tokens.end(), tokens_.begin() + int64_t{block} * kBlockSize);
  log_.emplace_back(hash, +1);
  return block;
}

CacheEvents BlockManager::TakeEvents() {
  absl::flat_hash_map<BlockHash, int> net;
  for (const auto& [hash, change] : log_) net[hash] += change;
  CacheEvents events;
  for (const auto& [hash, change] : log_) {
    int& left = net[hash];
    if (left > 0) events.stored.push_back(hash);
    if (left < 0) events.removed.push_back(hash);
    left = 0;
  }
  log_.clear();
  return events;
}

bool BlockManager::Holds(int32_t block, int32_t parent, std::span<const int32_t> tokens) const {
  return blocks_[block].parent == parent &&
         std::equal(tokens.begin(), tokens.end(), tokens_.begin() + int64_t{block} * kBlockSize);
}

void BlockManager::LinkYoungest(int32_t block) {
  Block& anchor = blocks_[num_blocks_];
  blocks_[block].older = anchor.older;
  blocks_[block].younger = num_blocks_;
  blocks_[anchor.older].younger = block;
  anchor.older = block;
  ++num_cached_;
}

void BlockManager::Unlink(int32_t block) {
  Block& b = blocks_[block];
  blocks_[b.older].younger = b.younger;
  blocks_[b.younger].older = b.older;
  b.older = b.younger = kNoBlock;
  --num_cached_;
}

void BlockManager::CheckIntegrity(std::span<const int> expected_refs) const {
  CHECK_EQ(expected_refs.size(), static_cast<size_t>(num_blocks_));
  std::vector<int> age(num_blocks_, -1);  // place in LRU order; larger is younger
  int num_listed = 0;
  for (int32_t b = blocks_[num_blocks_].younger; b != num_blocks_; b = blocks_[b].younger) {
    CHECK_EQ(age[b], -1) << "block " << b << " is twice in LRU order";
    CHECK_EQ(blocks_[blocks_[b].younger].older, b);
    age[b] = num_listed++;
  }
  CHECK_EQ(num_listed, num_cached_);
  std::vector<bool> is_free(num_blocks_, false);
  for (int32_t b : free_) {
    CHECK(!is_free[b]) << "block " << b << " is twice free";
    is_free[b] = true;
  }
  size_t num_in_cache = 0;
  for (int32_t i = 0; i < num_blocks_; ++i) {
    const Block& b = blocks_[i];
    CHECK_EQ(b.ref, expected_refs[i]) << "block " << i;
    CHECK_EQ(is_free[i], b.ref == 0 && !b.in_cache) << "block " << i;
    CHECK_EQ(age[i] >= 0, b.ref == 0 && b.in_cache) << "block " << i;
    if (!b.in_cache) continue;
    ++num_in_cache;
    const auto it = index_.find(b.hash);
    CHECK(it != index_.end() && it->second == i) << "block " << i;
    if (b.parent == kNoBlock) continue;
    const Block& parent = blocks_[b.parent];
    CHECK(parent.in_cache) << "block " << i << " outlived its parent " << b.parent;
    CHECK(parent.ref > 0 || (b.ref == 0 && age[b.parent] > age[i]))
        << "block " << i << " is used or younger than its unused parent " << b.parent;
  }
  CHECK_EQ(num_in_cache, index_.size());
}

}  // namespace bough
