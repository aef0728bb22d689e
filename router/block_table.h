// The flat table under PrefixIndex: block hash -> 64-bit mask, never 0.
//
// A bucket is three cache lines for seven entries (27.4 bytes each):
//
//   keys    meta, lo[7]     a miss reads this line
//   masks   mask[7]         a hit this one too
//   rest    hi[7]           the writer only
//
// An entry lies in the first bucket with room on its path: from its home, which its HashPosition names,
// in strides of its own through the kReach buckets from there. (One bucket after the other would make
// clusters: at this load a miss would read 16 buckets in one case of a hundred rather than 2.) A bucket
// counts the entries that passed it, in eight classes: where there is none of its class, a miss ends.
//
// So the table is sorted by position but for kReach: a range of positions is a range of buckets, which
// makes it its own reverse map (Update, ForEach), and lets it grow by a frontier that moves through
// it: positions below lie in the new buckets, the others still in the old ones, and memory is taken
// and given back page by page as the frontier passes. Writes do that work, a little each.
// Two address ranges are reserved for good, and the table grows from one into the other: no pointer
// that a reader holds ever dangles.
//
// A reader matches `lo` near the place that the whole hash names, not `hi`: two hashes of 2^-64 odds
// may be taken for one. The writer compares all 128 bits.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "common/block_hash.h"

namespace bough::router {

// One thread writes; any number of others read meanwhile: Look, Prefetch, Read. No reader waits for the
// writer, wherever it was stopped, nor sees one entry's key with another one's mask (block_table.cc).
class BlockTable {
 private:
  static constexpr int kBucketSlots = 7;
  struct alignas(64) Bucket {
    // Bits 0-31: version, counts entries written. Then four bits for each class: entries that passed by
    // here; 15 = that many or more, for good.
    std::atomic<uint64_t> meta;
    std::atomic<uint64_t> lo[kBucketSlots];
    alignas(64) std::atomic<uint64_t> mask[kBucketSlots];  // 0 = free
    alignas(64) uint64_t hi[kBucketSlots];
  };

  struct Buckets {
    Bucket* first = nullptr;
    uint64_t count = 0;  // homes; kReach more follow
    friend bool operator==(const Buckets&, const Buckets&) = default;
  };

  // Where an entry may lie.
  struct Path {
    Path(const Buckets& buckets, uint64_t position);
    Bucket* At(unsigned i) const;
    // Of its class, in `meta`.
    bool Passed(uint64_t meta) const { return meta & PassedMask(); }
    uint64_t PassedMask() const { return uint64_t{15} << class_shift; }

    Bucket* home;
    unsigned stride, class_shift;
  };

  // Positions, both ends included.
  struct Range {
    uint64_t first, last;
  };

 public:
  static constexpr int kReach = 128;
  // Buckets on an entry's path: what bounds a reader's and the writer's work.
  static constexpr int kMaxTries = 64;

  // REQUIRES: max_blocks > 0. Memory is taken as entries come.
  explicit BlockTable(size_t max_blocks);
  ~BlockTable();
  BlockTable(const BlockTable&) = delete;
  BlockTable& operator=(const BlockTable&) = delete;

  // ---- readers ----

  // Where positions lie; Read keeps it current.
  struct View {
    Buckets below, above;  // of positions below and from `frontier`
    uint64_t frontier = 0;
    uint64_t version = 0;
    const Buckets& Of(uint64_t position) const { return position < frontier ? below : above; }
  };
  View Look() const;

  // Starts to load what Read of the hash will need. Returns its HashPosition.
  static uint64_t Prefetch(const View& view, const BlockHash& hash);
  // The hash's mask; 0 = not in the table.
  uint64_t Read(View* view, const BlockHash& hash, uint64_t position) const;

  // ---- the writer ----

  void PrefetchForWrite(const BlockHash& hash) const;
  // Where a hash lies, until the next Insert, Set, Update or Reserve.
  struct Entry {
    uint64_t mask = 0;  // 0 = not in the table

   private:
    friend class BlockTable;
    Bucket* bucket = nullptr;
    int i = 0;
  };
  Entry Find(const BlockHash& hash) const;
  // Whether there was room: not at max_blocks, nor for more hashes of one position than a path has
  // slots, which only hashes made for it have. `dropped` is told of such that find none when the table
  // grows.
  // REQUIRES: the hash is not in the table, mask != 0.
  using Dropped = absl::FunctionRef<void(const BlockHash&, uint64_t mask)>;
  bool Insert(const BlockHash& hash, uint64_t mask, Dropped dropped);
  // Mask 0 erases it. REQUIRES: the entry is one that Find found.
  void Set(const BlockHash& hash, const Entry& entry, uint64_t mask);
  // Every entry at positions [first, last]: its mask becomes what `update` returns; 0 erases it.
  void Update(uint64_t first, uint64_t last,
              absl::FunctionRef<uint64_t(const BlockHash&, uint64_t mask)> update);
  void ForEach(uint64_t first, uint64_t last,
               absl::FunctionRef<void(const BlockHash&, uint64_t mask)> visit) const;
  // Grows towards room for this many, as far as max_blocks allow.
  void Reserve(size_t num_blocks);

  size_t size() const { return size_; }
  size_t max_blocks() const { return max_blocks_; }
  // Memory that holds entries now.
  size_t bytes() const;

 private:
  struct PublishedView {
    std::atomic<Bucket*> below_first, above_first;
    std::atomic<uint64_t> below_count, above_count, frontier;
  };

  static Bucket* Home(const Buckets& buckets, uint64_t position);
  static void PrefetchToWrite(const Bucket* bucket);
  static uint64_t ReadPath(const Path& path, uint64_t lo);
  static Entry FindIn(const Buckets& buckets, const BlockHash& hash);
  static bool InsertIn(const Buckets& buckets, const BlockHash& hash, uint64_t mask);
  static void EraseIn(const Buckets& buckets, const Entry& entry, uint64_t position);
  void SetIn(const Buckets& buckets, const BlockHash& hash, const Entry& entry, uint64_t mask);
  template <typename Visit>
  static void Walk(const Buckets& buckets, Range range, Visit visit);
  template <typename Visit>
  void WalkBoth(Range range, Visit visit) const;

  bool growing() const { return next_ < view_.above.count && view_.below.count > 0; }
  uint64_t CountFor(size_t num_blocks) const;
  void StartGrowthIfDue(bool full = false);
  void StartGrowth(uint64_t count);
  void Grow(uint64_t num_buckets, Dropped dropped);
  void ReleaseUpTo(uint64_t bucket);
  void Publish();

  const size_t max_blocks_;
  uint64_t max_count_ = 0, reserved_count_ = 0;
  size_t range_bytes_ = 0;
  std::array<Bucket*, 2> ranges_ = {};  // the addresses reserved
  size_t size_ = 0;

  View view_;            // the writer's own, always current
  uint64_t next_ = 0;    // growing: the first old bucket not moved
  uint64_t debt_ = 0;    // growing: old buckets to be moved soon
  size_t released_ = 0;  // growing: bytes of the old buckets given back

  // view_.version & 1 says which one is current; the other one is the writer's to fill.
  std::array<PublishedView, 2> published_ = {};
  alignas(64) std::atomic<uint64_t> version_ = 0;
};

}  // namespace bough::router
