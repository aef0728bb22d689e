// Many query rows times many keys on Hopper's tensor cores: the tile of prefill attention and of nodes
// that many rows share.
//
// A producer copies K and V of 128 keys at a time into a ring in shared memory; each consumer
// warpgroup multiplies 64 rows. It asks for the next scores before it adds the weighted values of the
// last ones, so that its exponentials overlap with products; the other warpgroup's fill the rest.
// Weights go from the accumulators of the first product straight to the second as its A operand
// (kv_layout.h says why that works with e4m3).
//
// Elements multiplied: bf16 for a bf16 cache. An e4m3 cache's as they are, q and the weights
// quantised too; or widened exactly to f16 by the producer.
#pragma once

#include "kernels/cuda/attention_kernels.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.cuh"

namespace bough::cuda {

inline constexpr int kTileKeys = 128;
inline constexpr int kGroupRows = 64;  // query rows of a warpgroup
inline constexpr int kMaxTileShared = 227 * 1024;
// Barriers of named threads: each warpgroup's, both's, and the turns of two (see TileConsumer).
inline constexpr int kGroupBarrier = 1, kBothGroups = 3, kTurnBarrier = 4;

template <typename CacheType, typename ElementType, int kHeadDimension, int kWarpgroups>
struct TileShape {
  using Cache = CacheType;
  using Element = ElementType;
  static constexpr int kHeadDim = kHeadDimension, kConsumers = kWarpgroups;
  static constexpr int kRows = kGroupRows * kConsumers;
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroupSize;
  static constexpr bool kE4M3 = std::is_same_v<Element, E4M3>;
  static constexpr bool kWidens = sizeof(Cache) != sizeof(Element);
  static constexpr bool kConverts = !std::is_same_v<Element, BF16>;  // queries, which are bf16
  // Queries and keys: panels of kPanelBytes of every row, one panel after the other.
  static constexpr int kRowBytes = kHeadDim * sizeof(Element);
  static constexpr int kPanelBytes = kRowBytes < 128 ? kRowBytes : 128;
  static constexpr int kPanels = kRowBytes / kPanelBytes;
  static constexpr int kSteps = kRowBytes / 32;  // of the first product
  static constexpr int kQueryBytes = kGroupRows * kRowBytes;
  // Queries come while the last range's are in use: into a second operand's memory, or as they are.
  static constexpr int kFetchBytes = kGroupRows * kHeadDim * 2;
  // Values: of a bf16 cache as keys; else head_dim rows of a block's 64 keys, block after block.
  static constexpr int kValueRowBytes = kBlockKeys * sizeof(Element);
  static constexpr int kSlotBytes = kTileKeys * kRowBytes;
  static constexpr int kBlockBytes = kBlockKeys * kHeadDim * sizeof(Cache);  // in the cache
  static constexpr int kWeightWords = kTileKeys * sizeof(Element) / 8;       // of a thread
  static constexpr int kFixedBytes =
      kConsumers * (kQueryBytes + kFetchBytes + kGroupRows * 4) + 2048;
  static constexpr int kSlotsThatFit = (kMaxTileShared - kFixedBytes) / (kSlotBytes + 16);
  static constexpr int kSlots = kSlotsThatFit < 12 ? kSlotsThatFit : 12;
  static_assert(kSlots >= 4, "two tiles' keys and values");
};

// What the producer tells the consumers of the ranges that they take in, some ahead.
template <typename Item>
struct ItemRing {
  static constexpr int kItems = 3;  // one in work, one whose queries come, one more
  Item items[kItems];
  bool is_end[kItems];
  uint64_t full[kItems], empty[kItems];
};

template <typename Shape, typename Item>
struct TileShared {
  alignas(1024) uint8_t queries[Shape::kConsumers][Shape::kQueryBytes];
  alignas(1024) uint8_t fetched[Shape::kConsumers][Shape::kFetchBytes];
  alignas(1024) uint8_t slots[Shape::kSlots][Shape::kSlotBytes];
  float q_scale[Shape::kConsumers][kGroupRows];  // of e4m3 queries
  uint64_t full[Shape::kSlots], empty[Shape::kSlots];
  ItemRing<Item> ring;

  // One thread calls it, before a barrier of the thread block.
  __device__ void Init() {
    constexpr int kConsumerWarps = Shape::kConsumers * kWarpgroupSize / kWarpSize;
    for (int i = 0; i < Shape::kSlots; ++i) {
      InitBarrier(&full[i], Shape::kWidens ? kWarpgroupSize : 1);
      InitBarrier(&empty[i], kConsumerWarps);
    }
    for (int i = 0; i < ItemRing<Item>::kItems; ++i) {
      InitBarrier(&ring.full[i], 1);
      InitBarrier(&ring.empty[i], kConsumerWarps);
    }
    FenceBarrierInit();
  }
};

// A slot of a ring and the parity of its barriers' phase. Keys of tile j + 1 come before values of
// tile j, as they are wanted.
template <int kSlots>
struct RingPosition {
  int slot = 0;
  uint32_t phase = 0;
  __device__ void Advance() {
    if (++slot < kSlots) return;
    slot = 0;
    phase ^= 1;
  }
};

// Rows are (unit, head) pairs, heads innermost; units are a KV head's queries.
struct HeadDivider {
  int heads;
  uint32_t factor;  // 2^32 / heads, rounded up

  __device__ explicit HeadDivider(int heads_per_kv)
      : heads(heads_per_kv), factor(0xffffffffu / heads_per_kv + 1) {}
  // REQUIRES: row * heads < 2^32.
  __device__ int Unit(int row) const {
    return heads == 1 ? row : static_cast<int>(__umulhi(row, factor));
  }
};

// Blocks [begin_block, end_block) of a sequence, one KV head of them. No row sees keys of blocks before
// first_block >= begin_block, which need not exist.
struct KeyRange {
  int seq;        // whose table leads to the blocks,
  bool in_nodes;  // of keys in nodes the one of the node's first sequence
  int kv_head;
  int begin_block, first_block, end_block;

  __device__ int NumTiles() const { return CeilDiv(max(0, end_block - begin_block), 2); }
  __device__ int FirstKey(int tile) const { return begin_block * kBlockKeys + tile * kTileKeys; }
};

// The ids of a range's blocks, 32 at a time in the lanes of a warp. Before the first and past the last
// block come those again: what lies in the slots must be numbers.
struct BlockIds {
  const AttentionParams& p;
  const KeyRange& keys;
  int base, id = 0;

  __device__ BlockIds(const AttentionParams& params, const KeyRange& range)
      : p(params), keys(range), base(range.begin_block) {
    Load();
  }
  __device__ void Load() {
    const int lane = threadIdx.x % kWarpSize;
    const int block = min(max(base + lane, keys.first_block), keys.end_block - 1);
    const int seq = keys.in_nodes ? p.TableSeq(keys.seq, block) : keys.seq;
    id = p.block_tables[int64_t{seq} * p.max_blocks + block];
  }
  // All lanes call it, with blocks that ascend.
  __device__ int Get(int block) {
    if (block >= base + kWarpSize) {
      base += kWarpSize;
      Load();
    }
    return __shfl_sync(kFullWarp, id, block - base);
  }
};

// Copies ranges of keys into the ring by TMA, as slots become free. One warp runs it.
template <typename Shape, typename Shared>
struct CopyProducer {
  const AttentionParams& p;
  Shared& shared;
  const CUtensorMap& k_map;
  const CUtensorMap& v_map;
  RingPosition<Shape::kSlots> at = {};

  __device__ void Produce(const KeyRange& keys) {
    const int num_tiles = keys.NumTiles();
    if (num_tiles == 0) return;
    BlockIds ids(p, keys);
    int v0 = 0, v1 = 0;
    for (int tile = 0; tile < num_tiles; ++tile) {
      const int block = keys.begin_block + tile * 2;
      const int k0 = ids.Get(block) * p.num_kv_heads + keys.kv_head;
      const int k1 = ids.Get(block + 1) * p.num_kv_heads + keys.kv_head;
      CopyKeys(k0, k1);
      if (tile > 0) CopyValues(v0, v1);
      v0 = k0;
      v1 = k1;
    }
    CopyValues(v0, v1);
  }

 private:
  // Blocks are counted with their KV heads.
  __device__ void CopyKeys(int block0, int block1) { Copy(k_map, kBlockKeys, block0, block1); }
  __device__ void CopyValues(int block0, int block1) {
    Copy(v_map, sizeof(typename Shape::Cache) == 1 ? Shape::kHeadDim : kBlockKeys, block0, block1);
  }
  __device__ void Copy(const CUtensorMap& map, int block_rows, int block0, int block1) {
    if (threadIdx.x % kWarpSize == 0) {
      uint64_t* full = &shared.full[at.slot];
      uint8_t* to = shared.slots[at.slot];
      Wait(&shared.empty[at.slot], at.phase ^ 1);
      ArriveExpectBytes(full, Shape::kSlotBytes);
      const uint64_t policy = EvictNormal();
      // e4m3 values' boxes have rows of 64 keys and lie one after the other, whole.
      const int panels = block_rows == kBlockKeys ? Shape::kPanels : 1;
      const int box_bytes = Shape::kSlotBytes / 2 / panels;
      for (int panel = 0; panel < panels; ++panel) {
        CopyBox(to + (2 * panel) * box_bytes, &map, panel * 128, block0 * block_rows, full, policy);
        CopyBox(to + (2 * panel + 1) * box_bytes, &map, panel * 128, block1 * block_rows, full,
                policy);
      }
    }
    __syncwarp();
    at.Advance();
  }
};

// Widens an e4m3 cache to f16 on its way into the ring. A warpgroup runs it.
template <typename Shape, typename Shared>
struct WideningProducer {
  const AttentionParams& p;
  Shared& shared;
  RingPosition<Shape::kSlots> at = {};

  static constexpr int kChunks = Shape::kBlockBytes / 16 / kWarpgroupSize;  // of a block, a thread
  static constexpr int kRowChunks = Shape::kHeadDim / 16;                   // of a key

  __device__ void Produce(const KeyRange& keys) {
    const int num_tiles = keys.NumTiles();
    if (num_tiles == 0) return;
    BlockIds ids(p, keys);
    const auto* k_cache = static_cast<const uint8_t*>(p.k_cache);
    const auto* v_cache = static_cast<const uint8_t*>(p.v_cache);
    int64_t v0 = 0, v1 = 0;
    for (int tile = 0; tile < num_tiles; ++tile) {
      const int block = keys.begin_block + tile * 2;
      const int64_t k0 = BlockAt(ids.Get(block), keys.kv_head);
      const int64_t k1 = BlockAt(ids.Get(block + 1), keys.kv_head);
      WidenTile<true>(k_cache + k0, k_cache + k1);
      if (tile > 0) WidenTile<false>(v_cache + v0, v_cache + v1);
      v0 = k0;
      v1 = k1;
    }
    WidenTile<false>(v_cache + v0, v_cache + v1);
  }

 private:
  __device__ int64_t BlockAt(int block, int kv_head) const {
    return (int64_t{block} * p.num_kv_heads + kv_head) * Shape::kBlockBytes;
  }

  template <bool kIsKeys>
  __device__ void WidenTile(const uint8_t* block0, const uint8_t* block1) {
    const int thread = threadIdx.x % kWarpgroupSize;
    uint4 raw[2][kChunks];
#pragma unroll
    for (int i = 0; i < 2 * kChunks; ++i) {
      const uint8_t* block = i < kChunks ? block0 : block1;
      raw[i / kChunks][i % kChunks] = __ldg(reinterpret_cast<const uint4*>(block) +
                                            i % kChunks * kWarpgroupSize + thread);
    }
    Wait(&shared.empty[at.slot], at.phase ^ 1);
#pragma unroll
    for (int i = 0; i < 2 * kChunks; ++i) {
      const int chunk = i % kChunks * kWarpgroupSize + thread;
      if constexpr (kIsKeys) {
        StoreKey(i / kChunks, chunk, raw[i / kChunks][i % kChunks]);
      } else {
        StoreValue(i / kChunks, chunk, raw[i / kChunks][i % kChunks]);
      }
    }
    FenceAsyncProxy();
    Arrive(&shared.full[at.slot]);
    at.Advance();
  }

  // Where 16 bytes of a row of a panel with rows of 128 bytes lie.
  __device__ static int Swizzled(int row, int chunk) { return row * 128 + (chunk ^ row % 8) * 16; }

  // 16 dimensions of a key: as they come.
  __device__ void StoreKey(int block, int chunk, uint4 raw) {
    const int row = block * kBlockKeys + chunk / kRowChunks, column = chunk % kRowChunks * 2;
    uint8_t* to = shared.slots[at.slot] + column / 8 * (kTileKeys * 128);
    *reinterpret_cast<uint4*>(to + Swizzled(row, column % 8)) = {
        Low(raw.x), High(raw.x), Low(raw.y), High(raw.y)};
    *reinterpret_cast<uint4*>(to + Swizzled(row, column % 8 + 1)) = {
        Low(raw.z), High(raw.z), Low(raw.w), High(raw.w)};
  }
  // 16 keys of a dimension, back in their own order: the low halves of words hold keys 0 to 7.
  __device__ void StoreValue(int block, int chunk, uint4 raw) {
    const int row = chunk / 4, column = chunk % 4 * 2;
    uint8_t* to = shared.slots[at.slot] + block * (Shape::kSlotBytes / 2);
    *reinterpret_cast<uint4*>(to + Swizzled(row, column)) = {Low(raw.x), Low(raw.y), Low(raw.z),
                                                             Low(raw.w)};
    *reinterpret_cast<uint4*>(to + Swizzled(row, column + 1)) = {High(raw.x), High(raw.y),
                                                                 High(raw.z), High(raw.w)};
  }
  __device__ static uint32_t Low(uint32_t word) { return WidenPair(static_cast<uint16_t>(word)); }
  __device__ static uint32_t High(uint32_t word) {
    return WidenPair(static_cast<uint16_t>(word >> 16));
  }
};

// The producer warpgroup's part: the items that next(item) gives until it returns false, and their
// keys. before_keys() returns once the cache may be read.
template <typename Shape, typename Item, typename Next, typename Before>
__device__ void Produce(const AttentionParams& p, TileShared<Shape, Item>& shared,
                        const CUtensorMap& k_map, const CUtensorMap& v_map, Next next,
                        Before before_keys) {
  using Shared = TileShared<Shape, Item>;
  ItemRing<Item>& ring = shared.ring;
  RingPosition<ItemRing<Item>::kItems> at;
  const bool tells = threadIdx.x % kWarpgroupSize == 0;
  const auto tell_next = [&](Item& item) {
    const bool found = next(item);
    if (tells) {
      Wait(&ring.empty[at.slot], at.phase ^ 1);
      ring.items[at.slot] = item;
      ring.is_end[at.slot] = !found;
      Arrive(&ring.full[at.slot]);
    }
    __syncwarp();
    at.Advance();
    return found;
  };
  const auto produce = [&](auto producer) {
    Item item;
    bool found = tell_next(item);
    before_keys();
    while (found) {
      const KeyRange keys = item.keys;
      found = tell_next(item);  // first: consumers want to know it before they take in these keys
      producer.Produce(keys);
    }
  };
  if constexpr (Shape::kWidens) {
    produce(WideningProducer<Shape, Shared>{p, shared});
  } else if (threadIdx.x / kWarpSize % 4 == 0) {
    produce(CopyProducer<Shape, Shared>{p, shared, k_map, v_map});
  }
}

// A consumer warpgroup's view of the items.
template <typename Item>
struct ItemReader {
  ItemRing<Item>& ring;
  RingPosition<ItemRing<Item>::kItems> at = {};

  // The next item, nullptr after the last; to be given back by its slot.
  __device__ const Item* Next(int& slot) {
    Wait(&ring.full[at.slot], at.phase);
    slot = at.slot;
    at.Advance();
    return ring.is_end[slot] ? nullptr : &ring.items[slot];
  }
  __device__ void GiveBack(int slot) const {
    if (threadIdx.x % kWarpSize == 0) Arrive(&ring.empty[slot]);
  }
};

// Registers go from the producer warpgroup to the consumers, which hold scores, sums and weights.
template <typename Shape>
__device__ void LendRegisters() {
  ShrinkRegisters<Shape::kWidens ? 88 : 40>();
}
template <typename Shape>
__device__ void BorrowRegisters() {
  GrowRegisters<Shape::kWidens ? 208 : 232>();
}

// Starts copying num_bytes to shared memory, and zeros up to 16 bytes.
__device__ inline void StartCopy(void* to, const void* from, int num_bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(to)), "l"(from),
               "r"(num_bytes)
               : "memory");
}
// Until this thread's copies have landed.
__device__ inline void WaitForCopies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Four weights in e4m3, the first in the lowest byte.
__device__ inline uint32_t PackE4M3(float a, float b, float c, float d) {
  uint32_t word;
  asm("{.reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};}"
      : "=r"(word)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return word;
}

// One consumer warpgroup's rows. Its threads hold rows 16 warp + lane / 4 + 8 h.
//   kTwoLevel   the tensor core's sums of a tile are added to f32 ones: it keeps about 14 bits of
//               e4m3 products
template <typename Shape, typename Shared, bool kTwoLevel>
struct TileConsumer {
  using Element = typename Shape::Element;
  static constexpr int kHeadDim = Shape::kHeadDim;
  static constexpr int kScores = kTileKeys / 2, kOutputs = kHeadDim / 2;  // of a thread
  // Queries move 16 bytes, 8 elements, at a time: a thread has a chunk of every kRowsAtOnce-th row.
  static constexpr int kRowChunks = kHeadDim / 8, kRowsAtOnce = kWarpgroupSize / kRowChunks;
  static constexpr int kQueryChunks = kGroupRows / kRowsAtOnce;
  // Weights up to 2^kRaise: e4m3 has its full precision from 2^-6 on. MaxOf is lower by it.
  static constexpr float kRaise = Shape::kE4M3 ? 8 : 0;

  Shared& shared;
  RingPosition<Shape::kSlots> at = {};
  // Two warpgroups that attend to the same ranges issue their products one after the other, so that
  // one's exponentials meet the other's products.
  bool takes_turns = true;
  bool in_fetched = false;  // the queries are in shared.fetched; never if they are converted
  int warpgroup = threadIdx.x / kWarpgroupSize;
  int lane = threadIdx.x % kWarpSize;
  float m[2], l[2];   // m of unscaled scores; l of this thread's columns
  float scale[2];     // of scores, to exponents of 2
  float o[kOutputs];  // rows as scores, columns 8 j + 2 (lane % 4) + c at [4 j + 2 h + c]

  __device__ int Row(int h) const {
    return warpgroup * kGroupRows + threadIdx.x % kWarpgroupSize / kWarpSize * 16 + lane / 4 + 8 * h;
  }
  // Before the first range.
  __device__ void BeginTurns() const {
    if (warpgroup == 1) ArriveThreads(kTurnBarrier, 2 * kWarpgroupSize);
  }
  __device__ void SyncGroup() const { SyncThreads(kGroupBarrier + warpgroup, kWarpgroupSize); }

  // Starts copying the warpgroup's rows of the next range; query(row) is a row's address, nullptr for
  // zeros. Every thread copies what it converts or fences itself.
  template <typename Query>
  __device__ void StartFetch(const AttentionParams& p, Query query) {
    const int thread = threadIdx.x % kWarpgroupSize;
    const int first = thread / kRowChunks, chunk = thread % kRowChunks;
    uint8_t* const to = Shape::kConverts || !in_fetched ? shared.fetched[warpgroup]
                                                        : shared.queries[warpgroup];
#pragma unroll
    for (int i = 0; i < kQueryChunks; ++i) {
      const int row = first + i * kRowsAtOnce;
      const BF16* from = query(warpgroup * kGroupRows + row);
      uint8_t* const at_row =
          to + (Shape::kConverts ? (i * kWarpgroupSize + thread) * 16 : Swizzled(row, chunk));
      if (from != nullptr) {
        StartCopy(at_row, from + chunk * 8, 16);
      } else {
        StartCopy(at_row, p.q, 0);
      }
    }
  }

  // Begins the range whose rows were fetched last. No product may be running.
  __device__ void FinishFetch(float score_scale) {
    const int thread = threadIdx.x % kWarpgroupSize;
    const int first = thread / kRowChunks, chunk = thread % kRowChunks;
    WaitForCopies();
    if constexpr (Shape::kConverts) {
      SyncGroup();  // the last range's products have read their queries
#pragma unroll
      for (int i = 0; i < kQueryChunks; ++i) {
        const uint4 q = *reinterpret_cast<const uint4*>(shared.fetched[warpgroup] +
                                                        (i * kWarpgroupSize + thread) * 16);
        const int row = first + i * kRowsAtOnce;
        if constexpr (Shape::kE4M3) {
          StoreQuantised(row, chunk, q);
        } else {
          *reinterpret_cast<uint4*>(shared.queries[warpgroup] + Swizzled(row, chunk)) =
              ConvertPairs<Element>(q);
        }
      }
    } else {
      in_fetched = !in_fetched;
    }
    FenceAsyncProxy();
    SyncGroup();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      scale[h] = score_scale;
      if constexpr (Shape::kE4M3) scale[h] *= shared.q_scale[warpgroup][Row(h) % kGroupRows];
    }
  }

  // Lets a range pass by.
  __device__ void Skip(const KeyRange& keys) {
    for (int i = keys.NumTiles() * 2; i > 0; --i) {
      Wait(&shared.full[at.slot], at.phase);
      Release(at.slot);
      at.Advance();
    }
  }

  // Attends to the range. see(h) is the range of keys {begin, end} that row Row(h) sees; all rows of
  // the warpgroup see keys [all_begin, all_end).
  template <typename See>
  __device__ void Attend(const KeyRange& keys, int all_begin, int all_end, See see) {
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) o[i] = 0;
    m[0] = m[1] = -INFINITY;
    l[0] = l[1] = 0;
    const int num_tiles = keys.NumTiles();
    if (num_tiles == 0) return;
    const auto mask = [&](float (&s)[kScores], int tile) {
      const int key = keys.FirstKey(tile);
      if (key >= all_begin && key + kTileKeys <= all_end) return;
      Mask(s, key, see);
    };
    float s[kScores], part[kOutputs], rescale[2];  // part: with two levels
    uint32_t weights[Shape::kWeightWords];
#pragma unroll
    for (int i = 0; i < kScores; ++i) s[i] = 0;
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) part[i] = 0;

    TakeTurn();
    Wait(&shared.full[at.slot], at.phase);
    WgmmaFence();
    Scores(s);
    WgmmaCommit();
    EndTurn();
    WgmmaWait<0>();
    PinRegisters(s);
    Release(at.slot);
    at.Advance();
    mask(s, 0);
    Weigh(s, rescale);
    Pack(weights, s);
#pragma unroll 1
    for (int tile = 1; tile < num_tiles; ++tile) {
      TakeTurn();
      const int key_slot = at.slot;
      Wait(&shared.full[at.slot], at.phase);
      WgmmaFence();
      Scores(s);
      WgmmaCommit();
      at.Advance();
      Wait(&shared.full[at.slot], at.phase);
      WgmmaFence();
      AddWeighted(kTwoLevel ? part : o, weights);
      WgmmaCommit();
      EndTurn();
      WgmmaWait<1>();
      PinRegisters(s);
      Release(key_slot);
      float next_rescale[2];
      mask(s, tile);
      Weigh(s, next_rescale);
      // Never true: without a branch that needs the weights the compiler waits before it makes them.
      if (l[0] + l[1] < 0) asm volatile("nanosleep.u32 0;");
      WgmmaWait<0>();
      PinRegisters(kTwoLevel ? part : o);
      Release(at.slot);
      at.Advance();
      if constexpr (kTwoLevel) {
        Flush(part, rescale);
      } else {
#pragma unroll
        for (int i = 0; i < kOutputs; ++i) o[i] *= next_rescale[i / 2 % 2];
      }
      rescale[0] = next_rescale[0];
      rescale[1] = next_rescale[1];
      Pack(weights, s);
    }
    Wait(&shared.full[at.slot], at.phase);
    WgmmaFence();
    AddWeighted(kTwoLevel ? part : o, weights);
    WgmmaCommit();
    WgmmaWait<0>();
    PinRegisters(kTwoLevel ? part : o);
    Release(at.slot);
    at.Advance();
    if constexpr (kTwoLevel) Flush(part, rescale);
  }

  // Of row Row(h), the same in the four lanes that hold it: the sum of weights e^(s - m), and m in
  // powers of 2; o are sums of the same weights.
  __device__ float SumOf(int h) const {
    const float sum = l[h] + __shfl_xor_sync(kFullWarp, l[h], 1);
    return sum + __shfl_xor_sync(kFullWarp, sum, 2);
  }
  __device__ float MaxOf(int h) const { return m[h] * scale[h] - kRaise; }

  // Writes row Row(h) of o times `factor` to `to` in bf16; `writes` is the same in the row's lanes. They
  // exchange their columns to write 16 bytes each.
  __device__ void WriteBF16(int h, float factor, BF16* to, bool writes) const {
    const bool odd = lane & 1, high = lane & 2;
#pragma unroll
    for (int j = 0; j < kHeadDim / 8; j += 4) {
      uint32_t words[4];  // columns 8 (j + i) + 2 (lane % 4)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* sums = o + 4 * (j + i) + 2 * h;
        words[i] = PackPair<BF16>(sums[0] * factor, sums[1] * factor);
      }
      uint32_t pairs[2][2];  // of lanes l & ~1, l | 1: columns 8 (j + odd), 8 (j + 2 + odd)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t mine = odd ? words[2 * i + 1] : words[2 * i];
        const uint32_t other =
            __shfl_xor_sync(kFullWarp, odd ? words[2 * i] : words[2 * i + 1], 1);
        pairs[i][0] = odd ? other : mine;
        pairs[i][1] = odd ? mine : other;
      }
      const uint32_t x = __shfl_xor_sync(kFullWarp, high ? pairs[0][0] : pairs[1][0], 2);
      const uint32_t y = __shfl_xor_sync(kFullWarp, high ? pairs[0][1] : pairs[1][1], 2);
      const uint4 chunk = high ? uint4{x, y, pairs[1][0], pairs[1][1]}
                               : uint4{pairs[0][0], pairs[0][1], x, y};
      if (writes) *reinterpret_cast<uint4*>(to + 8 * (j + lane % 4)) = chunk;
    }
  }
  // The same in f32, as it is, for other thread blocks.
  __device__ void WriteFloats(int h, float* to, bool writes) const {
    const bool odd = lane & 1;
#pragma unroll
    for (int j = 0; j < kHeadDim / 8; j += 2) {
      const float* even_sums = o + 4 * j + 2 * h;  // columns 8 j + 2 (lane % 4)
      const float* odd_sums = even_sums + 4;       // 8 further
      const float x = __shfl_xor_sync(kFullWarp, odd ? even_sums[0] : odd_sums[0], 1);
      const float y = __shfl_xor_sync(kFullWarp, odd ? even_sums[1] : odd_sums[1], 1);
      const float4 chunk = odd ? make_float4(x, y, odd_sums[0], odd_sums[1])
                               : make_float4(even_sums[0], even_sums[1], x, y);
      if (writes) {
        __stcg(reinterpret_cast<float4*>(to + 8 * (j + odd) + lane % 4 / 2 * 4), chunk);
      }
    }
  }

 private:
  __device__ void TakeTurn() const {
    if (takes_turns) SyncThreads(kTurnBarrier + warpgroup, 2 * kWarpgroupSize);
  }
  __device__ void EndTurn() const {
    if (takes_turns) ArriveThreads(kTurnBarrier + (warpgroup ^ 1), 2 * kWarpgroupSize);
  }
  __device__ void Release(int slot) const {
    if (lane == 0) Arrive(&shared.empty[slot]);
  }

  // Where a chunk of 16-bit queries lies.
  __device__ static int Swizzled(int row, int chunk) {
    return chunk / 8 * (kGroupRows * 128) + row * 128 + (chunk % 8 ^ row % 8) * 16;
  }

  // A row's 8 elements to e4m3 with the row's scale; the row's chunks are neighbouring lanes'.
  __device__ void StoreQuantised(int row, int chunk, uint4 q) const {
    uint8_t* const to = shared.queries[warpgroup];
    const uint32_t words[] = {q.x, q.y, q.z, q.w};
    float x[8], amax = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      x[i] = __uint_as_float(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u);
      amax = fmaxf(amax, fabsf(x[i]));
    }
#pragma unroll
    for (int i = kHeadDim / 16; i > 0; i /= 2) {
      amax = fmaxf(amax, __shfl_xor_sync(kFullWarp, amax, i));
    }
    const float factor = amax > 0 ? __fdividef(kMaxE4M3, amax) : 0;
    const uint2 codes = {PackE4M3(x[0] * factor, x[1] * factor, x[2] * factor, x[3] * factor),
                         PackE4M3(x[4] * factor, x[5] * factor, x[6] * factor, x[7] * factor)};
    constexpr int kRowBytes = Shape::kRowBytes, kSwizzles = kRowBytes / 16;
    const int swizzle = row * kRowBytes / 128 % kSwizzles;
    *reinterpret_cast<uint2*>(to + row * kRowBytes + (chunk / 2 ^ swizzle) * 16 + chunk % 2 * 8) =
        codes;
    // 1 for zeros: a masked score, -inf, times 0 were no number.
    if (chunk == 0) shared.q_scale[warpgroup][row] = amax > 0 ? amax * (1 / kMaxE4M3) : 1;
  }

  // s = q k^T of the slot.
  __device__ void Scores(float (&s)[kScores]) const {
    constexpr int kPanelSteps = Shape::kPanelBytes / 32;
    constexpr int kQueryPanel = kGroupRows * Shape::kPanelBytes / 16;
    constexpr int kKeyPanel = kTileKeys * Shape::kPanelBytes / 16;
    const uint64_t q = RowsDescriptor<Shape::kPanelBytes>(
        !Shape::kConverts && in_fetched ? shared.fetched[warpgroup] : shared.queries[warpgroup]);
    const uint64_t k = RowsDescriptor<Shape::kPanelBytes>(shared.slots[at.slot]);
#pragma unroll
    for (int i = 0; i < Shape::kSteps; ++i) {
      const int panel = i / kPanelSteps, in_panel = i % kPanelSteps * 2;
      MultiplyShared<Element>(s, q + panel * kQueryPanel + in_panel, k + panel * kKeyPanel + in_panel,
                              i > 0);
    }
  }

  // sums += weights v of the slot, or = with two levels.
  __device__ void AddWeighted(float (&sums)[kOutputs],
                              const uint32_t (&weights)[Shape::kWeightWords]) const {
    constexpr int kStepKeys = 32 / sizeof(Element), kBlockSteps = kBlockKeys / kStepKeys;
#pragma unroll
    for (int i = 0; i < kTileKeys / kStepKeys; ++i) {
      const int add = !kTwoLevel || i > 0;
      if constexpr (sizeof(typename Shape::Cache) == 2) {
        const uint64_t v = ColumnsDescriptor<kTileKeys * 128>(shared.slots[at.slot]);
        MultiplyRegisters<Element, true>(sums, weights + 4 * i, v + i * (kStepKeys * 128 / 16), add);
      } else {
        const uint64_t v = RowsDescriptor<Shape::kValueRowBytes>(shared.slots[at.slot]);
        const int at_step = i / kBlockSteps * (Shape::kSlotBytes / 2 / 16) + i % kBlockSteps * 2;
        MultiplyRegisters<Element, false>(sums, weights + 4 * i, v + at_step, add);
      }
    }
  }

  // Keys that a row does not see get -inf.
  template <typename See>
  __device__ void Mask(float (&s)[kScores], int first_key, See see) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int2 keys = see(h);
      const int begin = keys.x - first_key - lane % 4 * 2, end = keys.y - first_key - lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < kScores / 4; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          if (8 * j + c < begin || 8 * j + c >= end) s[4 * j + 2 * h + c] = -INFINITY;
        }
      }
    }
  }

  // Turns scores into weights relative to the rows' new m; `rescale` is what sums relative to the old
  // one are to be multiplied with. A row may not have seen any key yet: its m stays -inf, its weights
  // are 0.
  __device__ void Weigh(float (&s)[kScores], float (&rescale)[2]) {
    // Of row h, two chains each: s[4 j + 2 h + c] for even and for odd j.
    float max[4] = {m[0], s[4], m[1], s[6]}, sum[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kScores; i += 2) {
      float& x = max[i / 2 % 2 * 2 + i / 4 % 2];
      x = fmaxf(x, fmaxf(s[i], s[i + 1]));
    }
    float shift[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) max[h] = fmaxf(max[2 * h], max[2 * h + 1]);
#pragma unroll
    for (int lanes = 1; lanes <= 2; lanes *= 2) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        max[h] = fmaxf(max[h], __shfl_xor_sync(kFullWarp, max[h], lanes));
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float top = max[h] == -INFINITY ? 0 : max[h] * scale[h];
      rescale[h] = Exp2(m[h] * scale[h] - top);
      m[h] = max[h];
      shift[h] = kRaise - top;
    }
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      const int h = i / 2 % 2;
      s[i] = Exp2(s[i] * scale[h] + shift[h]);
      sum[2 * h + i % 2] += s[i];
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) l[h] = l[h] * rescale[h] + (sum[2 * h] + sum[2 * h + 1]);
  }

  // Weights as the second product's A operand.
  __device__ void Pack(uint32_t (&weights)[Shape::kWeightWords], const float (&s)[kScores]) const {
#pragma unroll
    for (int i = 0; i < Shape::kWeightWords; ++i) {
      if constexpr (Shape::kE4M3) {
        const int at_word = i / 2 * 8 + i % 2 * 2;
        weights[i] = PackE4M3(s[at_word], s[at_word + 1], s[at_word + 4], s[at_word + 5]);
      } else {
        weights[i] = PackPair<Element>(s[2 * i], s[2 * i + 1]);
      }
    }
  }

  __device__ void Flush(const float (&part)[kOutputs], const float (&rescale)[2]) {
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) o[i] = o[i] * rescale[i / 2 % 2] + part[i];
  }
};

// Boxes are blocks of one KV head, or panels of them. As many rows as the largest cache could have: a box
// is read only where a block is.
inline constexpr int64_t kManyRows = int64_t{1} << 31;

template <typename Shape>
CUtensorMap KeyMap(const AttentionParams& p) {
  constexpr int kRowBytes = Shape::kHeadDim * sizeof(typename Shape::Cache);
  return MakeTensorMap(p.k_cache, kManyRows, kRowBytes, std::min(kRowBytes, 128), kBlockKeys);
}
template <typename Shape>
CUtensorMap ValueMap(const AttentionParams& p) {
  constexpr int kRowBytes = Shape::kHeadDim * sizeof(typename Shape::Cache);
  if constexpr (sizeof(typename Shape::Cache) == 1) {
    return MakeTensorMap(p.v_cache, kManyRows, kBlockKeys, kBlockKeys, Shape::kHeadDim);
  } else {
    return MakeTensorMap(p.v_cache, kManyRows, kRowBytes, std::min(kRowBytes, 128), kBlockKeys);
  }
}

// Lets a kernel have so much shared memory, once.
template <auto kKernel, int kBytes>
void AllowSharedMemory() {
  static_assert(kBytes <= kMaxTileShared);
  static const bool allowed = [] {
    CUDA_CHECK(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    return true;
  }();
  (void)allowed;
}

}  // namespace bough::cuda
