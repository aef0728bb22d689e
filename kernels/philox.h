// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", SC'11. A pure function of (counter, key): no state to store, to seed or to resume.
#pragma once

#include <array>
#include <cstdint>

namespace bough {

constexpr std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                             std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
  }
  return counter;
}

// The draws of one sampled token: four vocabulary entries share a counter.
constexpr std::array<uint32_t, 4> SamplingBits(uint64_t seed, int32_t choice, int32_t position,
                                               int32_t token_id) {
  return Philox4x32({static_cast<uint32_t>(token_id) / 4, static_cast<uint32_t>(position),
                     static_cast<uint32_t>(choice), 0},
                    {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
}

// The centre of one of 2^32 equal cells of (0, 1): never 0, never 1.
constexpr double UnitInterval(uint32_t bits) { return (bits + 0.5) * 0x1p-32; }

}  // namespace bough
