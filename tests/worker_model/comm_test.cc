// Runs under mpirun with 2 and with 4 ranks. Every rank runs the same script; rank 0 looks at the
// results.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "absl/strings/str_cat.h"
#include "tests/worker_model/parallel_main.h"
#include "worker/comm/communicator.h"

namespace bough {
namespace {

using testing::Group;

// Values whose sum depends on the order of additions.
std::vector<float> Values(int rank, int64_t count) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) {
    values[i] = std::sin(static_cast<float>(i * 7 + rank * 13)) * std::pow(10.0f, (i + rank) % 7);
  }
  return values;
}

std::vector<float> AllReduced(int64_t count) {
  const auto comm = MakeCpuCommunicator(Group());
  std::vector<float> values = Values(Group()->rank(), count);
  comm->AllReduceSum(values.data(), count, DType::kF32);
  return values;
}

// What every rank got, rank after rank.
std::vector<float> GatheredAllReduce(int64_t count) {
  const auto comm = MakeCpuCommunicator(Group());
  const std::vector<float> mine = AllReduced(count);
  std::vector<float> all(Group()->rank() == 0 ? count * Group()->size() : 0);
  comm->Gather(mine.data(), count, all.data());
  return all;
}

absl::Status AgreeWhereOddRanksFail() {
  const int rank = Group()->rank();
  return Group()->Agree(rank % 2 == 1 ? absl::NotFoundError(absl::StrCat("no file ", rank))
                                      : absl::OkStatus());
}

void PostOnce() { Group()->PostProgress({Group()->rank(), "weights", 3, 7}); }

// The part of a test that all ranks run.
void Follow(const std::string& words) {
  if (words == "agree") {
    (void)AgreeWhereOddRanksFail();
  } else if (words == "agree ok") {
    (void)Group()->Agree(absl::OkStatus());
  } else if (words == "min") {
    Group()->Min(10 - Group()->rank());
  } else if (words == "post") {
    PostOnce();
    Group()->Barrier();
  } else {
    GatheredAllReduce(std::stoll(words));
  }
}

// Around the switch from short to long vectors, and sizes that the ranks do not divide.
class AllReduce : public ::testing::TestWithParam<int64_t> {};
INSTANTIATE_TEST_SUITE_P(, AllReduce,
                         ::testing::Values(0, 1, 3, 2047, 2048, 2049, 8192, 100003, 1 << 20));

TEST_P(AllReduce, AddsInRankOrderAndGivesEveryRankTheSameBits) {
  const int64_t count = GetParam();
  std::vector<float> want = Values(0, count);
  for (int rank = 1; rank < Group()->size(); ++rank) {
    const std::vector<float> values = Values(rank, count);
    for (int64_t i = 0; i < count; ++i) want[i] += values[i];
  }
  testing::StartFollowers(absl::StrCat(count));
  const std::vector<float> all = GatheredAllReduce(count);
  for (int rank = 0; rank < Group()->size(); ++rank) {
    EXPECT_TRUE(std::equal(want.begin(), want.end(), all.begin() + rank * count)) << rank;
  }
}

TEST(MpiGroup, AgreesOnTheFirstFailingRank) {
  testing::StartFollowers("agree");
  EXPECT_EQ(AgreeWhereOddRanksFail(), absl::NotFoundError("rank 1: no file 1"));
  testing::StartFollowers("agree ok");
  EXPECT_EQ(Group()->Agree(absl::OkStatus()), absl::OkStatus());
}

TEST(MpiGroup, FindsTheSmallestValue) {
  testing::StartFollowers("min");
  EXPECT_EQ(Group()->Min(10), 10 - (Group()->size() - 1));
}

TEST(MpiGroup, CollectsTheProgressOfTheOthers) {
  testing::StartFollowers("post");
  Group()->Barrier();
  std::vector<int> ranks;
  while (static_cast<int>(ranks.size()) < Group()->size() - 1) {
    for (const RankProgress& report : Group()->CollectProgress()) {
      ranks.push_back(report.rank);
      EXPECT_EQ(report.phase, "weights");
      EXPECT_EQ(report.bytes_done, 3);
      EXPECT_EQ(report.bytes_total, 7);
    }
  }
  std::vector<int> others;
  for (int rank = 1; rank < Group()->size(); ++rank) others.push_back(rank);
  EXPECT_THAT(ranks, ::testing::UnorderedElementsAreArray(others));
}

}  // namespace
}  // namespace bough

int main(int argc, char** argv) {
  return bough::testing::RunParallelTests(argc, argv, bough::Follow);
}
