// Memory order. Every word that a reader looks at is an atomic; readers load with acquire, the writer
// stores with release, so what a reader sees of one store it sees of all before it.
//
//   reader                          writer, new entry in a free slot   writer, erase
//     v = version                     version + 1                        mask = 0
//     lo == key?                      lo = key                           passed - 1 on its path
//     m = mask                        mask = m
//     lo and version as before?
//
// A slot changes its key only after its version has gone up and while its mask is 0. If m belongs to
// another key than the reader matched, that key was stored before m, so the second look at `lo` shows
// it; if the first key has come back by then, that was one more entry and the version shows it. The
// reader then looks again: each time the writer has finished something, so readers always get on.
//
// Growth. Entries are copied, then the frontier that has passed them is published, then the old pages
// are given back (they read as zeros from then on). A reader looks at the version of the view after it
// has read a bucket: if the view moved and now names other buckets for the position, it reads again.

#include "router/block_table.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "common/check.h"

namespace bough::router {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;
constexpr uint64_t kMinBuckets = 64;
// Full enough to grow, by a factor that keeps an entry within 40 bytes right after it too. A small
// table saves time instead.
constexpr double kMaxLoad = 0.82;
constexpr double kGrowth = 1.2;
constexpr uint64_t kSmallBuckets = 1 << 16;
constexpr double kSmallGrowth = 2;
// Old buckets moved per new entry: growth ends before the load has risen by 0.05.
constexpr uint64_t kMovesPerInsert = 3;
constexpr uint64_t kMovesAtOnce = 128;

// Between the load of a bucket into cache and its use, where buckets are visited in order.
constexpr int kBucketsAhead = 8;

constexpr uint64_t kVersionMask = 0xffffffff;

uint64_t Version(uint64_t meta) { return meta & kVersionMask; }

uint64_t MulHigh(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}

// The first position whose home is `bucket` of `count`.
uint64_t FirstPosition(uint64_t bucket, uint64_t count) {
  return static_cast<uint64_t>(((static_cast<unsigned __int128>(bucket) << 64) + count - 1) /
                               count);
}

size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

// ---- readers ----

BlockTable::View BlockTable::Look() const {
  for (;;) {
    View view;
    view.version = version_.load(std::memory_order_acquire);
    const PublishedView& p = published_[view.version & 1];
    view.below = {p.below_first.load(std::memory_order_acquire),
                  p.below_count.load(std::memory_order_acquire)};
    view.above = {p.above_first.load(std::memory_order_acquire),
                  p.above_count.load(std::memory_order_acquire)};
    view.frontier = p.frontier.load(std::memory_order_acquire);
    // The writer fills this one again only after it has published the next.
    if (version_.load(std::memory_order_relaxed) == view.version) return view;
  }
}

BlockTable::Bucket* BlockTable::Home(const Buckets& buckets, uint64_t position) {
  return buckets.first + MulHigh(position, buckets.count);
}

// The low bits of a position, which say nothing of its home, choose the path. An odd stride meets every
// bucket within reach once.
BlockTable::Path::Path(const Buckets& buckets, uint64_t position)
    : home(Home(buckets, position)),
      stride(static_cast<unsigned>((position >> 3) % kReach | 1)),
      class_shift(32 + static_cast<unsigned>(position % 8) * 4) {}

BlockTable::Bucket* BlockTable::Path::At(unsigned i) const { return home + i * stride % kReach; }

uint64_t BlockTable::Prefetch(const View& view, const BlockHash& hash) {
  const uint64_t position = HashPosition(hash);
  const Bucket* const home = Home(view.Of(position), position);
  __builtin_prefetch(&home->meta);
  __builtin_prefetch(&home->mask);
  return position;
}

uint64_t BlockTable::ReadPath(const Path& path, uint64_t lo) {
  for (int t = 0; t < kMaxTries; ++t) {
    const Bucket& bucket = *path.At(t);
    uint64_t meta = bucket.meta.load(std::memory_order_acquire);
    for (bool again = true; again;) {
      again = false;
      unsigned equal = 0;
      for (int i = 0; i < kBucketSlots; ++i) {
        equal |= unsigned{bucket.lo[i].load(std::memory_order_acquire) == lo} << i;
      }
      for (; equal != 0; equal &= equal - 1) {
        const int i = std::countr_zero(equal);
        const uint64_t mask = bucket.mask[i].load(std::memory_order_acquire);
        const bool same_key = bucket.lo[i].load(std::memory_order_acquire) == lo;
        const uint64_t meta_after = bucket.meta.load(std::memory_order_acquire);
        if (!same_key || Version(meta_after) != Version(meta)) {
          meta = meta_after;
          again = true;
          break;
        }
        if (mask != 0) return mask;
      }
    }
    if (!path.Passed(meta)) return 0;
  }
  return 0;
}

uint64_t BlockTable::Read(View* view, const BlockHash& hash, uint64_t position) const {
  for (;;) {
    const Buckets buckets = view->Of(position);
    const uint64_t mask = ReadPath(Path(buckets, position), hash.lo);
    if (version_.load(std::memory_order_acquire) == view->version) return mask;
    *view = Look();
    if (view->Of(position) == buckets) return mask;
  }
}

// ---- the writer ----

BlockTable::BlockTable(size_t max_blocks) : max_blocks_(max_blocks) {
  CHECK_GT(max_blocks, 0u);
  max_count_ = std::max(kMinBuckets, CountFor(max_blocks));
  range_bytes_ = RoundUp((max_count_ + kReach) * sizeof(Bucket), kHugePageBytes);
  for (Bucket*& range : ranges_) {
    // Addresses only; a huge page more, so that the range can begin at one.
    void* at = mmap(nullptr, range_bytes_ + kHugePageBytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(at != MAP_FAILED) << "no addresses for " << max_blocks << " blocks";
    const size_t begin = reinterpret_cast<size_t>(at);
    const size_t aligned = RoundUp(begin, kHugePageBytes);
    if (aligned > begin) munmap(at, aligned - begin);
    if (const size_t rest = begin + kHugePageBytes - aligned; rest > 0) {
      munmap(reinterpret_cast<void*>(aligned + range_bytes_), rest);
    }
    // Zeros are empty buckets.
    range = reinterpret_cast<Bucket*>(aligned);
  }
  view_.above = {ranges_[0], kMinBuckets};
  Publish();
}

BlockTable::~BlockTable() {
  for (Bucket* range : ranges_) munmap(range, range_bytes_);
}

void BlockTable::PrefetchForWrite(const BlockHash& hash) const {
  const uint64_t position = HashPosition(hash);
  PrefetchToWrite(Home(view_.Of(position), position));
}

void BlockTable::PrefetchToWrite(const Bucket* bucket) {
  __builtin_prefetch(&bucket->meta, 1);
  __builtin_prefetch(&bucket->mask, 1);
  __builtin_prefetch(&bucket->hi, 1);
}

BlockTable::Entry BlockTable::FindIn(const Buckets& buckets, const BlockHash& hash) {
  const Path path(buckets, HashPosition(hash));
  Entry entry;
  for (int t = 0; t < kMaxTries; ++t) {
    Bucket* const b = path.At(t);
    for (int i = 0; i < kBucketSlots; ++i) {
      if (b->lo[i].load(std::memory_order_relaxed) != hash.lo || b->hi[i] != hash.hi) continue;
      entry.mask = b->mask[i].load(std::memory_order_relaxed);
      if (entry.mask == 0) continue;
      entry.bucket = b;
      entry.i = i;
      return entry;
    }
    if (!path.Passed(b->meta.load(std::memory_order_relaxed))) break;
  }
  return entry;
}

bool BlockTable::InsertIn(const Buckets& buckets, const BlockHash& hash, uint64_t mask) {
  const Path path(buckets, HashPosition(hash));
  const uint64_t one_passed = path.PassedMask() / 15;
  for (int t = 0; t < kMaxTries; ++t) {
    Bucket* const b = path.At(t);
    for (int i = 0; i < kBucketSlots; ++i) {
      if (b->mask[i].load(std::memory_order_relaxed) != 0) continue;
      const uint64_t meta = b->meta.load(std::memory_order_relaxed);
      b->meta.store((meta & ~kVersionMask) | Version(meta + 1), std::memory_order_release);
      b->lo[i].store(hash.lo, std::memory_order_release);
      b->hi[i] = hash.hi;
      b->mask[i].store(mask, std::memory_order_release);
      while (t-- > 0) {
        const uint64_t passed = path.At(t)->meta.load(std::memory_order_relaxed);
        if ((passed & path.PassedMask()) == path.PassedMask()) continue;
        path.At(t)->meta.store(passed + one_passed, std::memory_order_release);
      }
      return true;
    }
  }
  return false;
}

void BlockTable::EraseIn(const Buckets& buckets, const Entry& entry, uint64_t position) {
  entry.bucket->mask[entry.i].store(0, std::memory_order_release);
  const Path path(buckets, position);
  const uint64_t one_passed = path.PassedMask() / 15;
  for (int t = 0; path.At(t) != entry.bucket; ++t) {
    const uint64_t passed = path.At(t)->meta.load(std::memory_order_relaxed);
    if ((passed & path.PassedMask()) == path.PassedMask()) continue;
    path.At(t)->meta.store(passed - one_passed, std::memory_order_release);
  }
}

// `visit(buckets, entry, hash)` may erase the entry.
template <typename Visit>
void BlockTable::Walk(const Buckets& buckets, Range range, Visit visit) {
  Bucket* const end = Home(buckets, range.last) + kReach;
  Entry entry;
  for (Bucket* b = Home(buckets, range.first); b < end; ++b) {
    entry.bucket = b;
    PrefetchToWrite(b + kBucketsAhead);
    for (int i = 0; i < kBucketSlots; ++i) {
      entry.i = i;
      entry.mask = b->mask[i].load(std::memory_order_relaxed);
      if (entry.mask == 0) continue;
      const BlockHash hash{b->lo[i].load(std::memory_order_relaxed), b->hi[i]};
      const uint64_t position = HashPosition(hash);
      if (position < range.first || position > range.last) continue;
      visit(buckets, entry, hash);
    }
  }
}

template <typename Visit>
void BlockTable::WalkBoth(Range range, Visit visit) const {
  if (range.first < view_.frontier) {
    Walk(view_.below, {range.first, std::min(range.last, view_.frontier - 1)}, visit);
  }
  if (range.last >= view_.frontier) {
    Walk(view_.above, {std::max(range.first, view_.frontier), range.last}, visit);
  }
}

BlockTable::Entry BlockTable::Find(const BlockHash& hash) const {
  return FindIn(view_.Of(HashPosition(hash)), hash);
}

bool BlockTable::Insert(const BlockHash& hash, uint64_t mask, Dropped dropped) {
  if (size_ == max_blocks_) return false;
  while (!InsertIn(view_.Of(HashPosition(hash)), hash, mask)) {
    // Full hereabouts, whatever the rest is: blocks came in the order of their positions.
    if (!growing()) StartGrowthIfDue(/*full=*/true);
    if (!growing()) return false;
    Grow(view_.above.count, dropped);
  }
  ++size_;
  if (growing()) {
    debt_ += kMovesPerInsert;
    if (debt_ >= kMovesAtOnce) Grow(std::exchange(debt_, 0), dropped);
  } else {
    StartGrowthIfDue();
  }
  return true;
}

void BlockTable::Set(const BlockHash& hash, const Entry& entry, uint64_t mask) {
  CHECK(entry.bucket != nullptr) << "set what is not in the table";
  SetIn(view_.Of(HashPosition(hash)), hash, entry, mask);
}

void BlockTable::SetIn(const Buckets& buckets, const BlockHash& hash, const Entry& entry,
                       uint64_t mask) {
  if (mask != 0) {
    entry.bucket->mask[entry.i].store(mask, std::memory_order_release);
  } else {
    EraseIn(buckets, entry, HashPosition(hash));
    --size_;
  }
}

void BlockTable::Update(uint64_t first, uint64_t last,
                        absl::FunctionRef<uint64_t(const BlockHash&, uint64_t mask)> update) {
  WalkBoth({first, last}, [&](const Buckets& buckets, const Entry& entry, const BlockHash& hash) {
    const uint64_t mask = update(hash, entry.mask);
    if (mask != entry.mask) SetIn(buckets, hash, entry, mask);
  });
}

void BlockTable::ForEach(uint64_t first, uint64_t last,
                         absl::FunctionRef<void(const BlockHash&, uint64_t mask)> visit) const {
  WalkBoth({first, last}, [&](const Buckets&, const Entry& entry, const BlockHash& hash) {
    visit(hash, entry.mask);
  });
}

// ---- growth ----

uint64_t BlockTable::CountFor(size_t num_blocks) const {
  return static_cast<uint64_t>(
      std::ceil(static_cast<double>(num_blocks) / (kMaxLoad * kBucketSlots)));
}

void BlockTable::Reserve(size_t num_blocks) {
  reserved_count_ = std::max(reserved_count_, CountFor(num_blocks));
  if (!growing()) StartGrowthIfDue();
}

void BlockTable::StartGrowthIfDue(bool full) {
  uint64_t count = reserved_count_;
  if (full || static_cast<double>(size_) > kMaxLoad * kBucketSlots * view_.above.count) {
    const double factor = view_.above.count < kSmallBuckets ? kSmallGrowth : kGrowth;
    count = std::max(count, static_cast<uint64_t>(factor * view_.above.count));
  }
  count = std::min(count, max_count_);
  if (count > view_.above.count) StartGrowth(count);
}

void BlockTable::StartGrowth(uint64_t count) {
  Bucket* const to = view_.above.first == ranges_[0] ? ranges_[1] : ranges_[0];
  const size_t bytes = (count + kReach) * sizeof(Bucket);
  // A hint: without huge pages it is slower, no more. A small table would waste most of one.
  if (bytes >= 4 * kHugePageBytes) madvise(to, RoundUp(bytes, kHugePageBytes), MADV_HUGEPAGE);
  view_.below = {to, count};
  view_.frontier = 0;
  next_ = debt_ = released_ = 0;
  Publish();
}

void BlockTable::Grow(uint64_t num_buckets, Dropped dropped) {
  const Buckets old = view_.above;
  const uint64_t end = std::min(next_ + num_buckets, old.count);
  const uint64_t first = FirstPosition(next_, old.count);
  const uint64_t last = end == old.count ? ~uint64_t{0} : FirstPosition(end, old.count) - 1;
  Walk(old, {first, last}, [&](const Buckets&, const Entry& entry, const BlockHash& hash) {
    // The new homes come one after the other, as the old ones do.
    PrefetchToWrite(Home(view_.below, HashPosition(hash)) + kBucketsAhead);
    if (InsertIn(view_.below, hash, entry.mask)) return;
    --size_;
    dropped(hash, entry.mask);
  });
  next_ = end;
  if (end < old.count) {
    view_.frontier = last + 1;
    Publish();
    ReleaseUpTo(next_);
  } else {
    view_.above = view_.below;
    view_.below = {};
    view_.frontier = 0;
    Publish();
    madvise(old.first, range_bytes_, MADV_DONTNEED);
  }
}

// Gives back the old buckets before `bucket`, a huge page at a time.
void BlockTable::ReleaseUpTo(uint64_t bucket) {
  const size_t passed = bucket * sizeof(Bucket) / kHugePageBytes * kHugePageBytes;
  if (passed == released_) return;
  madvise(reinterpret_cast<char*>(view_.above.first) + released_, passed - released_,
          MADV_DONTNEED);
  released_ = passed;
}

void BlockTable::Publish() {
  ++view_.version;
  PublishedView& p = published_[view_.version & 1];
  p.below_first.store(view_.below.first, std::memory_order_release);
  p.below_count.store(view_.below.count, std::memory_order_release);
  p.above_first.store(view_.above.first, std::memory_order_release);
  p.above_count.store(view_.above.count, std::memory_order_release);
  p.frontier.store(view_.frontier, std::memory_order_release);
  version_.store(view_.version, std::memory_order_release);
}

size_t BlockTable::bytes() const {
  size_t buckets = view_.above.count + kReach;
  if (growing()) {
    buckets += MulHigh(view_.frontier, view_.below.count) + kReach - released_ / sizeof(Bucket);
  }
  return sizeof(*this) + buckets * sizeof(Bucket);
}

}  // namespace bough::router
