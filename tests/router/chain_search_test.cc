#include "router/chain_search.h"

#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace bough::router {
namespace {

struct Looks {
  GroupDepths depths;
  int num_looks = 0, num_rounds = 0;
};

Looks Search(const std::vector<uint64_t>& chain) {
  Looks out;
  out.depths = SearchChain(static_cast<int>(chain.size()),
                           [&](std::span<const int> blocks, uint64_t* masks) {
                             ++out.num_rounds;
                             out.num_looks += static_cast<int>(blocks.size());
                             for (size_t i = 0; i < blocks.size(); ++i) masks[i] = chain[blocks[i]];
                           });
  return out;
}

std::vector<uint64_t> MasksOf(const GroupDepths& depths, int num_blocks) {
  std::vector<uint64_t> masks(num_blocks);
  for (int g = 0; g < kMaxGroups; ++g) {
    for (int i = 0; i < depths[g]; ++i) masks[i] |= uint64_t{1} << g;
  }
  return masks;
}

TEST(SearchChain, FindsEveryGroupsDepthWhereMasksAreMonotone) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 3000; ++trial) {
    const int num_blocks = static_cast<int>(random() % (trial % 2 ? 40 : 3000));
    const int num_depths = 1 + random() % 64;
    GroupDepths depths = {};
    for (int g = 0; g < kMaxGroups; ++g) {
      depths[g] = g < num_depths ? static_cast<int>(random() % (num_blocks + 1)) : depths[0];
    }
    ASSERT_EQ(Search(MasksOf(depths, num_blocks)).depths, depths) << num_blocks;
  }
}

TEST(SearchChain, LooksAtFewBlocksOfALongChain) {
  GroupDepths depths = {};
  depths[3] = 100;
  depths[17] = depths[18] = 333;
  depths[63] = 512;
  const Looks looks = Search(MasksOf(depths, 512));
  EXPECT_EQ(looks.depths, depths);
  EXPECT_LE(looks.num_rounds, 5);
  EXPECT_LE(looks.num_looks, kFirstLooks + 4 * 3 * chain_search::kLooks);
}

TEST(SearchChain, StopsAtTheFirstHoleOfAShortChain) {
  std::vector<uint64_t> chain(kFirstLooks, 0b111);
  chain[3] = 0b101;
  chain[6] = 0b110;
  const GroupDepths depths = Search(chain).depths;
  EXPECT_EQ(depths[0], 6);
  EXPECT_EQ(depths[1], 3);
  EXPECT_EQ(depths[2], kFirstLooks);
}

TEST(SearchChain, EndsAtABlockThatIsMissingBehindOneThatIsHeldWhateverTheMasks) {
  std::mt19937_64 random(2);
  for (int trial = 0; trial < 2000; ++trial) {
    std::vector<uint64_t> chain(1 + random() % 600);
    for (uint64_t& mask : chain) mask = random() | random() | random();
    const GroupDepths depths = Search(chain).depths;
    for (int g = 0; g < kMaxGroups; ++g) {
      const size_t d = depths[g];
      ASSERT_LE(d, chain.size());
      EXPECT_TRUE(d == 0 || (chain[d - 1] >> g & 1));
      EXPECT_TRUE(d == chain.size() || !(chain[d] >> g & 1));
    }
  }
}

}  // namespace
}  // namespace bough::router
