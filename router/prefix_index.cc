#include "router/prefix_index.h"

#include <algorithm>
#include <bit>

#include "common/check.h"

namespace bough::router {
namespace {

uint64_t Bit(int group) {
  CHECK_GE(group, 0);
  CHECK_LT(group, kMaxGroups);
  return uint64_t{1} << group;
}

// `mask_of(hash)` gives the groups that hold it. A group's depth is where it first drops out.
template <typename MaskOf>
GroupDepths MatchChain(std::span<const BlockHash> chain, MaskOf mask_of) {
  GroupDepths depth = {};
  uint64_t alive = ~uint64_t{0};
  for (const BlockHash& hash : chain) {
    alive &= mask_of(hash);
    if (alive == 0) break;
    for (uint64_t rest = alive; rest != 0; rest &= rest - 1) ++depth[std::countr_zero(rest)];
  }
  return depth;
}

}  // namespace

PrefixIndex::PrefixIndex(size_t max_blocks) : max_blocks_(max_blocks) { complete_.fill(true); }

void PrefixIndex::Reserve(size_t num_blocks) { masks_.reserve(std::min(num_blocks, max_blocks_)); }

void PrefixIndex::Add(int group, std::span<const BlockHash> hashes) {
  const uint64_t bit = Bit(group);
  for (const BlockHash& hash : hashes) {
    if (masks_.size() == max_blocks_ && !masks_.contains(hash)) {
      complete_[group] = false;
      ++num_refused_;
      continue;
    }
    uint64_t& mask = masks_[hash];
    if (mask & bit) continue;
    mask |= bit;
    ++num_blocks_[group];
    digest_[group] += DigestTerm(hash);
    bucket_digest_[group][DigestBucket(hash)] += DigestTerm(hash);
  }
}

void PrefixIndex::Remove(int group, std::span<const BlockHash> hashes) {
  const uint64_t bit = Bit(group);
  for (const BlockHash& hash : hashes) {
    auto it = masks_.find(hash);
    if (it == masks_.end() || !(it->second & bit)) continue;
    it->second &= ~bit;
    --num_blocks_[group];
    digest_[group] -= DigestTerm(hash);
    bucket_digest_[group][DigestBucket(hash)] -= DigestTerm(hash);
    if (it->second == 0) masks_.erase(it);
  }
}

void PrefixIndex::Clear(int group) {
  const uint64_t bit = Bit(group);
  for (auto it = masks_.begin(); it != masks_.end();) {
    auto current = it++;
    current->second &= ~bit;
    if (current->second == 0) masks_.erase(current);
  }
  num_blocks_[group] = 0;
  digest_[group] = 0;
  bucket_digest_[group] = {};
  complete_[group] = true;
}

bool PrefixIndex::Sweep() { return false; }

void PrefixIndex::ForEachInBucket(int group, int bucket,
                                  absl::FunctionRef<void(const BlockHash&)> visit) const {
  for (const auto& [hash, mask] : masks_) {
    if ((mask & Bit(group)) && DigestBucket(hash) == bucket) visit(hash);
  }
}

GroupDepths PrefixIndex::Match(std::span<const BlockHash> chain) const {
  return MatchChain(chain, [this](const BlockHash& hash) {
    auto it = masks_.find(hash);
    return it == masks_.end() ? uint64_t{0} : it->second;
  });
}

void ActivePrefixes::Add(int group, std::span<const BlockHash> chain) {
  const uint64_t bit = Bit(group);
  for (const BlockHash& hash : chain) {
    Uses& uses = uses_[hash];
    uses.mask |= bit;
    ++uses.count[group];
  }
}

void ActivePrefixes::Remove(int group, std::span<const BlockHash> chain) {
  const uint64_t bit = Bit(group);
  for (const BlockHash& hash : chain) {
    auto it = uses_.find(hash);
    CHECK(it != uses_.end() && (it->second.mask & bit)) << "removed what was never added";
    Uses& uses = it->second;
    if (--uses.count[group] > 0) continue;
    uses.count.erase(group);
    uses.mask &= ~bit;
    if (uses.mask == 0) uses_.erase(it);
  }
}

GroupDepths ActivePrefixes::Match(std::span<const BlockHash> chain) const {
  return MatchChain(chain, [this](const BlockHash& hash) {
    auto it = uses_.find(hash);
    return it == uses_.end() ? uint64_t{0} : it->second.mask;
  });
}

}  // namespace bough::router
