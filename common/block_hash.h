// The identity of a KV block: a chained 128-bit hash over the tokens up to and including the block.
//
//   h_0 = XXH3-128(model_key, salt)        h_{i+1} = XXH3-128(h_i, tokens of block i)
//
// Router and worker use this one definition. Equal hashes are a hint, not a proof: the worker compares
// tokens before it shares a block.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace bough {

// Tokens per KV block.
inline constexpr int kBlockSize = 64;

struct BlockHash {
  uint64_t lo = 0, hi = 0;
  friend bool operator==(const BlockHash&, const BlockHash&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const BlockHash& b) {
    return H::combine(std::move(h), b.lo, b.hi);
  }
};

// The chain's seed: the same model served to the same tenant salt.
BlockHash RootHash(std::string_view model_key, std::string_view salt);

// REQUIRES: tokens.size() == kBlockSize.
BlockHash NextHash(const BlockHash& parent, std::span<const int32_t> tokens);

// Hashes of all full blocks of `tokens`; a partial last block has none.
std::vector<BlockHash> HashBlocks(const BlockHash& root, std::span<const int32_t> tokens);

// What one hash adds to a rolling digest (link.proto, CacheDelta.digest); removal subtracts it.
inline uint64_t DigestTerm(const BlockHash& h) { return h.lo ^ h.hi; }

// Where a hash lies among all hashes: uniform over 64 bits, even for hashes counted up by hand.
inline uint64_t HashPosition(const BlockHash& h) {
  uint64_t x = h.lo + h.hi * 0x9e3779b97f4a7c15;
  x ^= x >> 32;
  return x * 0xd6e8feb86659fd93;
}

// Digests of 1/256 of the hashes each say where two copies of a set differ.
inline constexpr int kNumDigestBuckets = 256;
inline int DigestBucket(const BlockHash& h) { return static_cast<int>(HashPosition(h) >> 56); }

}  // namespace bough
