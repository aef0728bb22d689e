#include "worker/model/read_ahead.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

namespace bough {
namespace {

using ::testing::ElementsAre;

TEST(Read, WidensHalfPrecisionExactly) {
  const char bf16[] = "\xc0\x3f\x00\xc0", f16[] = "\x00\x3e\x00\xc0";
  for (const auto& [bytes, dtype] : {std::pair(bf16, DType::kBF16), std::pair(f16, DType::kF16)}) {
    float values[2] = {};
    Read({.src = reinterpret_cast<const uint8_t*>(bytes),
          .stride_bytes = 4,
          .num_rows = 1,
          .num_cols = 2,
          .src_dtype = dtype},
         values);
    EXPECT_THAT(values, ElementsAre(1.5f, -2.0f)) << Name(dtype);
  }
}

TEST(Read, RoundsToBf16) {
  const float wide[2] = {1.0f + 0x1p-8f, 3.0f};  // half way: to even
  uint16_t values[2] = {};
  Read({.src = reinterpret_cast<const uint8_t*>(wide),
        .stride_bytes = 8,
        .num_rows = 1,
        .num_cols = 2,
        .dtype = DType::kBF16},
       values);
  EXPECT_THAT(values, ElementsAre(0x3f80, 0x4040));
}

TEST(Read, TakesAPieceOfEachRow) {
  const float matrix[6] = {1, 2, 3, 4, 5, 6};
  float column[2] = {};
  Read({.src = reinterpret_cast<const uint8_t*>(matrix + 1),
        .stride_bytes = 12,
        .num_rows = 2,
        .num_cols = 1},
       column);
  EXPECT_THAT(column, ElementsAre(2, 5));
}

// `count` pieces of growing size of one host array.
std::vector<HostRows> Pieces(const std::vector<float>& host, int count) {
  std::vector<HostRows> pieces;
  int64_t first = 0;
  for (int i = 0; i < count; ++i) {
    pieces.push_back({.src = reinterpret_cast<const uint8_t*>(&host[first]),
                      .stride_bytes = 4 * (i + 1),
                      .num_rows = 1,
                      .num_cols = i + 1});
    first += i + 1;
  }
  return pieces;
}

TEST(ReadAhead, GivesAllRowsInOrder) {
  const auto device = MakeCpuDevice();
  std::vector<float> host(200 * 201 / 2);
  std::iota(host.begin(), host.end(), 0.0f);
  for (int count : {0, 1, 2, 3, 15, 16, 17, 200}) {
    ReadAhead reader(Pieces(host, count), device.get());
    float expected = 0;
    for (int i = 0; i < count; ++i) {
      const float* piece = static_cast<const float*>(reader.Next());
      for (int j = 0; j <= i; ++j) ASSERT_EQ(piece[j], expected++) << "piece " << i;
    }
  }
}

TEST(ReadAhead, MayBeLeftAtAnyPoint) {
  const auto device = MakeCpuDevice();
  const std::vector<float> host(100 * 101 / 2);
  for (int taken = 0; taken < 40; ++taken) {
    ReadAhead reader(Pieces(host, 100), device.get());
    for (int i = 0; i < taken; ++i) reader.Next();
  }
}

}  // namespace
}  // namespace bough
