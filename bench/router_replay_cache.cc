#include "bench/router_replay_cache.h"

namespace bough {

ReplayCache::ReplayCache(int num_ids, int capacity) : blocks_(num_ids), capacity_(capacity) {}

int ReplayCache::Match(std::span<const int> chain) const {
  size_t n = 0;
  while (n < chain.size() && blocks_[chain[n]].here) ++n;
  return static_cast<int>(n);
}

void ReplayCache::Link(int id) {
  blocks_[id].older = newest_;
  blocks_[id].newer = -1;
  (newest_ < 0 ? oldest_ : blocks_[newest_].newer) = id;
  newest_ = id;
  ++num_idle_;
}

void ReplayCache::Unlink(int id) {
  const Block& b = blocks_[id];
  (b.older < 0 ? oldest_ : blocks_[b.older].newer) = b.newer;
  (b.newer < 0 ? newest_ : blocks_[b.newer].older) = b.older;
  --num_idle_;
}

bool ReplayCache::Reserve(int count) {
  if (count > num_free() + num_idle_) return false;
  while (num_free() < count) {
    blocks_[oldest_].here = false;
    Unlink(oldest_);
  }
  num_private_ += count;
  return true;
}

void ReplayCache::Pin(int id) {
  Block& b = blocks_[id];
  if (b.pins++ > 0) return;
  Unlink(id);
  ++num_pinned_;
}

void ReplayCache::Store(int id) {
  Block& b = blocks_[id];
  --num_private_;
  if (b.here) return Pin(id);  // another request filled the same one meanwhile
  b.here = true;
  b.pins = 1;
  ++num_pinned_;
}

void ReplayCache::Unpin(std::span<const int> chain) {
  for (size_t i = chain.size(); i-- > 0;) {
    if (--blocks_[chain[i]].pins > 0) continue;
    --num_pinned_;
    Link(chain[i]);
  }
}

}  // namespace bough
