// How deep each group holds a chain of blocks, in few looks.
//
// Groups evict leaf first, so along a chain the mask of holders only loses groups: what lies between
// two blocks of equal masks need not be looked at. First some blocks over the whole chain, then, where
// a group drops out between two of them, some in between, and so on: O(C log n) looks for C distinct
// depths, in log n / 2 rounds whose loads from memory run side by side.
//
// Where masks are not monotone for a moment (a snapshot half applied, a refused block), a group's depth
// d still has block d-1 held and block d not, and no block of the first round before d missing; other
// blocks before d may be. Up to kFirstLooks blocks the answer is exact.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <span>

namespace bough::router {

inline constexpr int kMaxGroups = 64;

// Leading blocks of a chain that each group holds.
using GroupDepths = std::array<int, kMaxGroups>;

inline constexpr int kFirstLooks = 8;

namespace chain_search {

inline constexpr int kLooks = 3;  // between two blocks, in each further round

// Groups that hold block `low` but not block `high`, low < high.
struct Gap {
  int low, high;
  uint64_t groups;
};

// `n` of the numbers from `first` to `last`, both included, evenly. REQUIRES: last - first < 2^31.
inline void Spread(int64_t first, int64_t last, int n, int* blocks) {
  const int64_t step = n > 1 ? ((last - first) << 32) / (n - 1) : 0;
  const int64_t half = int64_t{1} << 31;
  for (int i = 0; i < n; ++i) blocks[i] = static_cast<int>(first + ((i * step + half) >> 32));
}

// Blocks inside the gap: at most kLooks.
inline int Inside(const Gap& gap, int* blocks) {
  const int64_t inside = gap.high - gap.low - 1;
  const int n = static_cast<int>(std::min<int64_t>(inside, kLooks));
  // As far from the ends as from one another.
  const int64_t apart = (gap.high - gap.low) / (n + 1);
  Spread(gap.low + apart, gap.high - apart, n, blocks);
  return n;
}

// Notes in which of the steps between neighbouring looks each of `alive` drops out. `last` ends it.
inline int Split(int low, uint64_t alive, std::span<const int> blocks, const uint64_t* masks,
                 int last, GroupDepths* depths, Gap* gaps) {
  int num_gaps = 0;
  auto drop = [&](int high, uint64_t dropped) {
    if (high - low > 1) {
      gaps[num_gaps++] = {low, high, dropped};
      return;
    }
    for (; dropped != 0; dropped &= dropped - 1) (*depths)[std::countr_zero(dropped)] = high;
  };
  for (size_t i = 0; i < blocks.size() && alive != 0; ++i) {
    if (const uint64_t dropped = alive & ~masks[i]) drop(blocks[i], dropped);
    alive &= masks[i];
    low = blocks[i];
  }
  if (alive != 0) drop(last, alive);
  return num_gaps;
}

}  // namespace chain_search

// Blocks that one call of `read` asks for at most.
inline constexpr int kMaxLooks = std::max(kFirstLooks, kMaxGroups* chain_search::kLooks);

// `read(blocks, masks)` gives the groups that hold blocks[i] of the chain as masks[i].
template <typename Read>
GroupDepths SearchChain(int num_blocks, Read read) {
  using chain_search::Gap;
  using chain_search::kLooks;
  GroupDepths depths = {};
  if (num_blocks == 0) return depths;

  // A gap has groups of its own, so there are never more gaps than groups.
  std::array<std::array<Gap, kMaxGroups>, 2> buffers;
  Gap *gaps = buffers[0].data(), *next_gaps = buffers[1].data();
  std::array<int, kMaxGroups + 1> begin;
  std::array<int, kMaxLooks> blocks;
  std::array<uint64_t, kMaxLooks> masks;

  // The first block, the last one, and between them.
  const int n = std::min(num_blocks, kFirstLooks);
  chain_search::Spread(0, num_blocks - 1, n, blocks.data());
  const std::span<const int> first(blocks.data(), n);
  read(first, masks.data());
  uint64_t whole = masks[0];
  for (int i = 1; i < n; ++i) whole &= masks[i];
  for (uint64_t rest = whole; rest != 0; rest &= rest - 1) {
    depths[std::countr_zero(rest)] = num_blocks;
  }
  int num_gaps = chain_search::Split(0, masks[0] & ~whole, first.subspan(1), &masks[1], num_blocks,
                                     &depths, gaps);

  while (num_gaps > 0) {
    begin[0] = 0;
    for (int i = 0; i < num_gaps; ++i) {
      begin[i + 1] = begin[i] + chain_search::Inside(gaps[i], &blocks[begin[i]]);
    }
    read(std::span<const int>(blocks.data(), begin[num_gaps]), masks.data());
    int num_next = 0;
    for (int i = 0; i < num_gaps; ++i) {
      const Gap& gap = gaps[i];
      num_next += chain_search::Split(
          gap.low, gap.groups, std::span<const int>(&blocks[begin[i]], begin[i + 1] - begin[i]),
          &masks[begin[i]], gap.high, &depths, &next_gaps[num_next]);
    }
    std::swap(gaps, next_gaps);
    num_gaps = num_next;
  }
  return depths;
}

}  // namespace bough::router
