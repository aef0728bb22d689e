// Clearing. Clear(g) only notes its number in cleared_at_[g]; a region's swept_at_ is the number of the
// last clear when its masks were last rid of stale bits. So bit g of a mask counts if cleared_at_[g] <=
// swept_at_[region]. A region is swept before a group that is stale there is added to it, so a bit is
// never both stale and fresh. A reader loads swept_at_ before the mask: what it then takes for fresh
// was swept before, and what it takes for stale was so when it looked.

#include "router/prefix_index.h"

#include <algorithm>
#include <bit>

#include "common/check.h"

namespace bough::router {
namespace {

// Between the load of a bucket into cache and its use, in blocks.
constexpr size_t kPrefetchAhead = 12;
// What one Sweep visits.
constexpr size_t kSweepEntries = 2000;
// A table of this size is swept by Clear itself.
constexpr size_t kSmallTableBytes = 64 << 10;

uint64_t Bit(int group) {
  CHECK_GE(group, 0);
  CHECK_LT(group, kMaxGroups);
  return uint64_t{1} << group;
}

}  // namespace

PrefixIndex::PrefixIndex(size_t max_blocks)
    : table_(max_blocks), swept_at_(new std::atomic<uint32_t>[kNumRegions]()) {
  complete_.fill(true);
}

void PrefixIndex::Reserve(size_t num_blocks) { table_.Reserve(num_blocks); }

void PrefixIndex::Count(int group, const BlockHash& hash) {
  if (bucket_digests_[group] == nullptr) bucket_digests_[group] = std::make_unique<BucketDigests>();
  ++num_blocks_[group];
  digest_[group] += DigestTerm(hash);
  (*bucket_digests_[group])[DigestBucket(hash)] += DigestTerm(hash);
}

void PrefixIndex::Discount(int group, const BlockHash& hash) {
  --num_blocks_[group];
  digest_[group] -= DigestTerm(hash);
  (*bucket_digests_[group])[DigestBucket(hash)] -= DigestTerm(hash);
}

void PrefixIndex::Refuse(int group) {
  complete_[group] = false;
  ++num_refused_;
}

void PrefixIndex::Add(int group, std::span<const BlockHash> hashes) {
  const uint64_t bit = Bit(group);
  auto drop = [this](const BlockHash& hash, uint64_t mask) {
    mask &= ~StaleGroups(pending_, swept_at_[RegionOf(HashPosition(hash))]);
    for (; mask != 0; mask &= mask - 1) {
      Discount(std::countr_zero(mask), hash);
      Refuse(std::countr_zero(mask));
    }
  };
  for (size_t i = 0; i < hashes.size(); ++i) {
    if (i + kPrefetchAhead < hashes.size()) table_.PrefetchForWrite(hashes[i + kPrefetchAhead]);
    const BlockHash& hash = hashes[i];
    const int region = RegionOf(HashPosition(hash));
    if (IsStale(group, region)) SweepRegions(region, region + 1);
    const BlockTable::Entry entry = table_.Find(hash);
    if (entry.mask & bit) continue;
    Count(group, hash);
    if (entry.mask != 0) {
      table_.Set(hash, entry, entry.mask | bit);
    } else if (!table_.Insert(hash, bit, drop)) {
      Discount(group, hash);
      Refuse(group);
    }
  }
  if (regions_left_ > 0) Sweep();
}

void PrefixIndex::Remove(int group, std::span<const BlockHash> hashes) {
  const uint64_t bit = Bit(group);
  for (size_t i = 0; i < hashes.size(); ++i) {
    if (i + kPrefetchAhead < hashes.size()) table_.PrefetchForWrite(hashes[i + kPrefetchAhead]);
    const BlockHash& hash = hashes[i];
    const BlockTable::Entry entry = table_.Find(hash);
    if (!(entry.mask & bit) || IsStale(group, RegionOf(HashPosition(hash)))) continue;
    table_.Set(hash, entry, entry.mask & ~bit);
    Discount(group, hash);
  }
  if (regions_left_ > 0) Sweep();
}

void PrefixIndex::Clear(int group) {
  const uint64_t bit = Bit(group);
  complete_[group] = true;
  if (num_blocks_[group] == 0) return;
  if (table_.bytes() <= kSmallTableBytes) {  // less work than to look at every region
    table_.Update(0, ~uint64_t{0}, [bit](const BlockHash&, uint64_t mask) { return mask & ~bit; });
    num_blocks_[group] = 0;
    digest_[group] = 0;
    bucket_digests_[group]->fill(0);
    return;
  }
  cleared_at_[group].store(++num_clears_, std::memory_order_release);
  pending_.store(pending_ | bit, std::memory_order_release);
  regions_left_ = kNumRegions;
  num_blocks_[group] = 0;
  digest_[group] = 0;
  bucket_digests_[group]->fill(0);
}

// The groups of `pending` whose bits do not count in a region.
uint64_t PrefixIndex::StaleGroups(uint64_t pending, uint32_t swept_at) const {
  uint64_t stale = 0;
  for (; pending != 0; pending &= pending - 1) {
    const int group = std::countr_zero(pending);
    if (cleared_at_[group].load(std::memory_order_acquire) > swept_at) stale |= Bit(group);
  }
  return stale;
}

bool PrefixIndex::IsStale(int group, int region) const {
  return cleared_at_[group].load(std::memory_order_relaxed) >
         swept_at_[region].load(std::memory_order_relaxed);
}

void PrefixIndex::SweepRegions(int first, int end) {
  const uint64_t pending = pending_.load(std::memory_order_relaxed);
  constexpr uint64_t kRegion = uint64_t{1} << (64 - kRegionBits);
  const uint64_t last_position = end * kRegion - 1;  // wraps to the last one of all
  table_.Update(first * kRegion, last_position, [&](const BlockHash& hash, uint64_t mask) {
    if (!(mask & pending)) return mask;
    return mask & ~StaleGroups(mask & pending, swept_at_[RegionOf(HashPosition(hash))]);
  });
  for (int r = first; r < end; ++r) swept_at_[r].store(num_clears_, std::memory_order_release);
}

bool PrefixIndex::Sweep() {
  if (regions_left_ == 0) return false;
  const size_t entries_per_region = std::max<size_t>(1, table_.size() / kNumRegions);
  const int num_regions = static_cast<int>(kSweepEntries / entries_per_region + 1);
  const int end = std::min({next_region_ + num_regions, next_region_ + regions_left_, kNumRegions});
  SweepRegions(next_region_, end);
  regions_left_ -= end - next_region_;
  next_region_ = end % kNumRegions;
  if (regions_left_ == 0) pending_.store(0, std::memory_order_release);
  return regions_left_ > 0;
}

void PrefixIndex::ForEachInBucket(int group, int bucket,
                                  absl::FunctionRef<void(const BlockHash&)> visit) const {
  const uint64_t bit = Bit(group);
  const uint64_t first = uint64_t(bucket) << 56;
  table_.ForEach(first, first + (~uint64_t{0} >> 8), [&](const BlockHash& hash, uint64_t mask) {
    if ((mask & bit) && !IsStale(group, RegionOf(HashPosition(hash)))) visit(hash);
  });
}

GroupDepths PrefixIndex::Match(std::span<const BlockHash> chain) const {
  const uint64_t pending = pending_.load(std::memory_order_acquire);
  BlockTable::View view = table_.Look();
  std::array<uint64_t, kMaxLooks> positions;
  return SearchChain(
      static_cast<int>(chain.size()), [&](std::span<const int> blocks, uint64_t* masks) {
        for (size_t i = 0; i < blocks.size(); ++i) {
          positions[i] = BlockTable::Prefetch(view, chain[blocks[i]]);
        }
        for (size_t i = 0; i < blocks.size(); ++i) {
          uint32_t swept_at = 0;
          if (pending != 0) {
            swept_at = swept_at_[RegionOf(positions[i])].load(std::memory_order_acquire);
          }
          masks[i] = table_.Read(&view, chain[blocks[i]], positions[i]);
          if (masks[i] & pending) masks[i] &= ~StaleGroups(masks[i] & pending, swept_at);
        }
      });
}

size_t PrefixIndex::bytes() const {
  size_t bytes = sizeof(*this) + kNumRegions * sizeof(swept_at_[0]) + table_.bytes();
  for (const auto& digests : bucket_digests_) bytes += digests == nullptr ? 0 : sizeof(*digests);
  return bytes;
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
  if (empty()) return {};
  return SearchChain(static_cast<int>(chain.size()),
                     [&](std::span<const int> blocks, uint64_t* masks) {
                       for (size_t i = 0; i < blocks.size(); ++i) {
                         const auto it = uses_.find(chain[blocks[i]]);
                         masks[i] = it == uses_.end() ? 0 : it->second.mask;
                       }
                     });
}

}  // namespace bough::router
