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

}  // namespace bough
