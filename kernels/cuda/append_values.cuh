// Values on their way into an e4m3 cache, where a token's bytes lie a block's rows apart
// (kv_layout.h). Three ways, for the L2 cache takes a byte as dearly as 32:
//   - of a prompt, runs of 16 tokens fill 16 bytes in a row and are written so;
//   - of a decode step, a token is alone in its 32 bytes: they are read and written whole;
//   - else, and in a step of few tokens, where reading first takes longest, byte by byte.
#pragma once

#include "kernels/cuda/rows.cuh"
#include "kernels/elementwise.h"
#include "kernels/kv_layout.h"

namespace bough::cuda {

inline constexpr int kRun = 16;  // tokens
inline constexpr int kSectorKeys = 32;
inline constexpr int kFewTokens = 8;

// How values are divided among thread blocks: windows of 16 tokens, and dims of all heads.
struct ValueBlocks {
  int num_blocks = 0;
  int per_window = 1;
  int num_pairs = 0;  // of dims, of one thread block
};

// A decode step's values keep an SM busy, so they are spread over many; a prompt's do not.
inline ValueBlocks DivideValues(const RopeAppendParams& p, int num_threads) {
  constexpr int kSpreadTokens = 512;
  ValueBlocks blocks;
  blocks.num_pairs =
      p.num_tokens <= kSpreadTokens ? std::min(p.head_dim / 2, num_threads) : num_threads;
  blocks.per_window = CeilDiv(p.num_kv_heads * p.head_dim / 2, blocks.num_pairs);
  blocks.num_blocks = CeilDiv(p.num_tokens, kRun) * blocks.per_window;
  return blocks;
}

// Which of a warp's first 16 lanes begins a run, or -1: 16 slots that ascend by one from a multiple of
// 16. The whole warp asks.
__device__ inline int FindRun(int slot) {
  const int lane = threadIdx.x % kWarpSize;
  unsigned begins = __ballot_sync(kFullWarp, lane < kRun && slot >= 0 && slot % kRun == 0);
  for (; begins != 0; begins &= begins - 1) {
    const int first = __ffs(begins) - 1;
    const int first_slot = __shfl_sync(kFullWarp, slot, first);
    const bool fits = lane < first || lane >= first + kRun || slot == first_slot + lane - first;
    if (__all_sync(kFullWarp, fits)) return first;
  }
  return -1;
}

template <typename T>
struct alignas(2 * sizeof(T)) RawPair {
  T a, b;
};

// One window of tokens, and some of the dims of all heads, [num_kv_heads * head_dim].
template <typename T>
class ValueWindow {
 public:
  __device__ ValueWindow(const RopeAppendParams& p, int64_t begin)
      : p_(p),
        begin_(begin),
        row_size_(int64_t{p.num_heads + 2 * p.num_kv_heads} * p.head_dim),
        v_(static_cast<const T*>(p.qkv) + begin * row_size_ +
           int64_t{p.num_heads + p.num_kv_heads} * p.head_dim) {}

  // Dims [first_dim, first_dim + num_dims).
  __device__ void Append(int first_dim, int num_dims) const {
    const int dim = first_dim + 2 * threadIdx.x;  // and the next, but where sectors are written
    const bool has_pair = 2 * static_cast<int>(threadIdx.x) < num_dims;
    if (p_.num_tokens <= kFewTokens) {
      if (has_pair) AppendFew(dim);
      return;
    }
    __shared__ int shared[kWarpSize + 1];
    int* const slots = shared + 1;  // of the window's tokens, and one before
    const int lane = threadIdx.x % kWarpSize;
    const int before = SlotOf(lane - kRun), slot = SlotOf(lane);
    if (threadIdx.x < kWarpSize) slots[lane] = slot;
    if (threadIdx.x == kRun - 1) slots[-1] = before;
    // A run that began before the window is not its own; one that begins in it is, to its end.
    const int run_before = FindRun(before), run = FindRun(slot);
    __syncthreads();

    const int first = max(run_before, 0), end = run < 0 ? kRun : run;
    const auto in_sector = [&](int i) {
      return p_.block_size % kSectorKeys == 0 &&
             slots[i - 1] / kSectorKeys != slots[i] / kSectorKeys &&
             slots[i + 1] / kSectorKeys != slots[i] / kSectorKeys;
    };
    const bool is_mine = lane >= first && lane < end && slot >= 0;
    const bool by_sector = is_mine && in_sector(lane);
    const unsigned in_sectors = __ballot_sync(kFullWarp, by_sector);
    const unsigned in_bytes = __ballot_sync(kFullWarp, is_mine && !by_sector);
    if (in_sectors != 0) AppendSectors(in_sectors, slots, first_dim, num_dims);
    if (!has_pair) return;
    if (in_bytes != 0) AppendBytes(in_bytes, slots, dim);
    if (run >= 0) AppendRun(run, slots[run], dim);
  }

 private:
  // Of the window's token i, which may lie outside of it; -1 where there is none.
  __device__ int SlotOf(int i) const {
    const int64_t token = begin_ + i;
    return token >= 0 && token < p_.num_tokens ? p_.slot_mapping[token] : -1;
  }

  template <int kCount>
  __device__ void LoadPairs(int dim, int first, RawPair<T> (&x)[kCount]) const {
    const T* at = v_ + first * row_size_ + dim;
    const int num_tokens = static_cast<int>(min(p_.num_tokens - begin_ - first, int64_t{kCount}));
#pragma unroll
    for (int i = 0; i < kCount; ++i, at += row_size_) {
      if (i < num_tokens) x[i] = *reinterpret_cast<const RawPair<T>*>(at);
    }
  }

  __device__ float Scaled(T x, int dim) const {
    return p_.v_scale == nullptr ? ToFloat(x) : ToFloat(x) / p_.v_scale[dim / p_.head_dim];
  }

  // Where row 0 of the dim lies in the slot's block.
  __device__ uint8_t* RowOf(int slot, int dim) const {
    const int64_t block = slot / p_.block_size;
    return static_cast<uint8_t*>(p_.v_cache) +
           (block * p_.num_kv_heads * p_.head_dim + dim) * p_.block_size;
  }

  __device__ void StoreBytes(const RawPair<T>& x, int dim, int slot) const {
    uint8_t* const out = RowOf(slot, dim) + ValueColumn(slot % p_.block_size);
    const uint32_t codes =
        PackPair(Scaled(x.a, dim), Scaled(x.b, dim), static_cast<E4M3*>(nullptr));
    out[0] = static_cast<uint8_t>(codes);
    out[p_.block_size] = static_cast<uint8_t>(codes >> 8);
  }

  // All of the batch's; loads go before what depends on slots.
  __device__ void AppendFew(int dim) const {
    RawPair<T> x[kFewTokens];
    LoadPairs(dim, 0, x);
#pragma unroll
    for (int i = 0; i < kFewTokens; ++i) {
      const int slot = SlotOf(i);
      if (slot >= 0) StoreBytes(x[i], dim, slot);
    }
  }

  // The tokens of set bits.
  __device__ void AppendBytes(unsigned tokens, const int* slots, int dim) const {
    RawPair<T> x[kRun];
    LoadPairs(dim, 0, x);
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if ((tokens >> i & 1) != 0) StoreBytes(x[i], dim, slots[i]);
    }
  }

  // Tokens [first, first + 16), the first at `slot`.
  __device__ void AppendRun(int first, int slot, int dim) const {
    static_assert(ValueColumn(2) == 4 && ValueColumn(1) == 1 && ValueColumn(8) == 2,
                  "word q has keys 2q, 2q + 1, 2q + 8, 2q + 9");
    RawPair<T> x[kRun];
    LoadPairs(dim, first, x);
    E4M3* const e4m3 = nullptr;
    uint32_t words[2][kRun / 4];
#pragma unroll
    for (int q = 0; q < kRun / 4; ++q) {
      const RawPair<T>&a = x[2 * q], &b = x[2 * q + 1], &c = x[2 * q + 8], &e = x[2 * q + 9];
      words[0][q] = PackPair(Scaled(a.a, dim), Scaled(b.a, dim), e4m3) |
                    PackPair(Scaled(c.a, dim), Scaled(e.a, dim), e4m3) << 16;
      words[1][q] = PackPair(Scaled(a.b, dim), Scaled(b.b, dim), e4m3) |
                    PackPair(Scaled(c.b, dim), Scaled(e.b, dim), e4m3) << 16;
    }
    uint8_t* const out = RowOf(slot, dim) + slot % p_.block_size;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      *reinterpret_cast<uint4*>(out + i * p_.block_size) =
          make_uint4(words[i][0], words[i][1], words[i][2], words[i][3]);
    }
  }

  // The tokens of set bits: two neighbouring threads read and write a dim's 32 bytes, and one of them
  // puts the token's in.
  __device__ void AppendSectors(unsigned tokens, const int* slots, int first_dim,
                                int num_dims) const {
    constexpr int kAtOnce = 2;
    const int num_halves = 2 * num_dims, end = kRun * num_halves;
    for (int u = threadIdx.x; u < end; u += kAtOnce * blockDim.x) {
      uint4 half[kAtOnce];
      uint4* at[kAtOnce];
      int code[kAtOnce];  // and its place; -1: in the other half
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        at[j] = nullptr;
        const int i = (u + j * blockDim.x) / num_halves, v = (u + j * blockDim.x) % num_halves;
        if (i >= kRun || (tokens >> i & 1) == 0) continue;
        const int dim = first_dim + v / 2, row = slots[i] % p_.block_size;
        at[j] = reinterpret_cast<uint4*>(RowOf(slots[i], dim) + row / kSectorKeys * kSectorKeys +
                                         v % 2 * kRun);
        half[j] = *at[j];
        code[j] = E4M3(Scaled(v_[i * row_size_ + dim], dim)).__x | ValueColumn(row) % kRun << 8;
        if (row / kRun % 2 != v % 2) code[j] = -1;
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (at[j] == nullptr) continue;
        if (code[j] >= 0) Insert(half[j], code[j] >> 8, code[j] & 0xff);
        *at[j] = half[j];
      }
    }
  }

  static __device__ void Insert(uint4& half, int byte, uint32_t code) {
    const int shift = byte % 4 * 8;
    const auto put = [&](uint32_t& word, int index) {
      if (byte / 4 == index) word = (word & ~(0xffu << shift)) | code << shift;
    };
    put(half.x, 0), put(half.y, 1), put(half.z, 2), put(half.w, 3);
  }

  const RopeAppendParams& p_;
  const int64_t begin_, row_size_;
  const T* const v_;
};

template <typename T>
__device__ void AppendValues(const RopeAppendParams& p, const ValueBlocks& blocks) {
  const int first_dim = blockIdx.x % blocks.per_window * blocks.num_pairs * 2;
  const int num_dims = min(2 * blocks.num_pairs, p.num_kv_heads * p.head_dim - first_dim);
  ValueWindow<T>(p, blockIdx.x / blocks.per_window * kRun).Append(first_dim, num_dims);
}

}  // namespace bough::cuda
