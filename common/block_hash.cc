#include "common/block_hash.h"

#include <array>
#include <bit>
#include <cstring>
#include <string>

#include "common/check.h"
#include "xxhash.h"

namespace bough {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the hash reads tokens as they lie in memory; hosts of one deployment must agree");

BlockHash Hash128(const void* bytes, size_t num_bytes) {
  const XXH128_hash_t h = XXH3_128bits(bytes, num_bytes);
  return {h.low64, h.high64};
}

}  // namespace

BlockHash RootHash(std::string_view model_key, std::string_view salt) {
  // The length in front keeps ("ab", "c") and ("a", "bc") apart.
  const uint64_t key_bytes = model_key.size();
  std::string buffer(reinterpret_cast<const char*>(&key_bytes), sizeof(key_bytes));
  buffer.append(model_key).append(salt);
  return Hash128(buffer.data(), buffer.size());
}

BlockHash NextHash(const BlockHash& parent, std::span<const int32_t> tokens) {
  CHECK_EQ(tokens.size(), size_t{kBlockSize});
  std::array<unsigned char, 2 * sizeof(uint64_t) + kBlockSize * sizeof(int32_t)> buffer;
  std::memcpy(buffer.data(), &parent.lo, sizeof(uint64_t));
  std::memcpy(buffer.data() + sizeof(uint64_t), &parent.hi, sizeof(uint64_t));
  std::memcpy(buffer.data() + 2 * sizeof(uint64_t), tokens.data(), tokens.size_bytes());
  return Hash128(buffer.data(), buffer.size());
}

std::vector<BlockHash> HashBlocks(const BlockHash& root, std::span<const int32_t> tokens) {
  std::vector<BlockHash> hashes(tokens.size() / kBlockSize);
  BlockHash h = root;
  for (size_t i = 0; i < hashes.size(); ++i) {
    h = NextHash(h, tokens.subspan(i * kBlockSize, kBlockSize));
    hashes[i] = h;
  }
  return hashes;
}

}  // namespace bough
