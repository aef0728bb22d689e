#include "worker/comm/mpi_group.h"

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <list>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "worker/comm/mpi_wait.h"
#include "worker/comm/single_rank.h"

namespace bough {
namespace {

constexpr int kBatchTag = 1;
constexpr int kProgressTag = 2;
constexpr auto kPollFor = std::chrono::microseconds(50);
constexpr auto kLongestSleep = std::chrono::microseconds(1000);

// RankProgress of fixed size.
struct ProgressMessage {
  int64_t bytes_done, bytes_total;
  char phase[48];
};

class MpiGroupImpl : public MpiGroup {
 public:
  MpiGroupImpl(int* argc, char*** argv) {
    int provided = 0;
    MPI_CHECK(MPI_Init_thread(argc, argv, MPI_THREAD_SERIALIZED, &provided));
    CHECK_GE(provided, MPI_THREAD_SERIALIZED) << "this MPI allows calls from one thread only";
    MPI_CHECK(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    MPI_CHECK(MPI_Comm_rank(MPI_COMM_WORLD, &rank_));
    MPI_CHECK(MPI_Comm_size(MPI_COMM_WORLD, &size_));
    MPI_Comm machine;
    MPI_CHECK(
        MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &machine));
    MPI_CHECK(MPI_Comm_rank(machine, &local_rank_));
    MPI_CHECK(MPI_Comm_free(&machine));
  }

  ~MpiGroupImpl() override {
    Barrier();          // every report is on its way
    CollectProgress();  // unread ones would keep their senders from finishing
    std::vector<MPI_Request> sends;
    for (Post& post : posts_) sends.push_back(post.request);
    WaitAll(sends);
    MPI_CHECK(MPI_Finalize());
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_rank() const override { return local_rank_; }

  absl::Status Agree(const absl::Status& mine) override {
    const int first_bad = static_cast<int>(Min(mine.ok() ? size_ : rank_));
    if (first_bad == size_) return absl::OkStatus();
    int32_t head[2] = {mine.raw_code(), static_cast<int32_t>(mine.message().size())};
    MPI_CHECK(MPI_Bcast(head, 2, MPI_INT32_T, first_bad, MPI_COMM_WORLD));
    std::string text(mine.message());
    text.resize(head[1]);
    MPI_CHECK(MPI_Bcast(text.data(), head[1], MPI_CHAR, first_bad, MPI_COMM_WORLD));
    return absl::Status(static_cast<absl::StatusCode>(head[0]),
                        absl::StrCat("rank ", first_bad, ": ", text));
  }

  int64_t Min(int64_t mine) override {
    int64_t least = 0;
    MPI_Request request;
    MPI_CHECK(MPI_Iallreduce(&mine, &least, 1, MPI_INT64_T, MPI_MIN, MPI_COMM_WORLD, &request));
    WaitAll({&request, 1});
    return least;
  }

  void Send(std::span<const uint8_t> bytes) override {
    CHECK_EQ(rank_, 0);
    CHECK_LE(bytes.size(), static_cast<size_t>(std::numeric_limits<int>::max()));
    std::vector<MPI_Request> requests(size_ - 1);
    for (int to = 1; to < size_; ++to) {
      MPI_CHECK(MPI_Isend(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, to, kBatchTag,
                          MPI_COMM_WORLD, &requests[to - 1]));
    }
    WaitAll(requests);
  }

  std::vector<uint8_t> Receive() override {
    CHECK_NE(rank_, 0);
    MPI_Status status;
    WaitForBatch(&status);
    int count = 0;
    MPI_CHECK(MPI_Get_count(&status, MPI_BYTE, &count));
    std::vector<uint8_t> bytes(count);
    MPI_Request request;
    MPI_CHECK(MPI_Irecv(bytes.data(), count, MPI_BYTE, 0, kBatchTag, MPI_COMM_WORLD, &request));
    WaitAll({&request, 1});
    return bytes;
  }

  void PostProgress(const RankProgress& progress) override {
    if (rank_ == 0) return;
    posts_.remove_if([](Post& post) {
      int done = 0;
      MPI_CHECK(MPI_Test(&post.request, &done, MPI_STATUS_IGNORE));
      return done != 0;
    });
    Post& post = posts_.emplace_back();
    post.message = {progress.bytes_done, progress.bytes_total, {}};
    std::snprintf(post.message.phase, sizeof(post.message.phase), "%s", progress.phase.c_str());
    MPI_CHECK(MPI_Isend(&post.message, sizeof(post.message), MPI_BYTE, 0, kProgressTag,
                        MPI_COMM_WORLD, &post.request));
  }

  std::vector<RankProgress> CollectProgress() override {
    std::vector<RankProgress> reports;
    for (;;) {
      int arrived = 0;
      MPI_Status status;
      MPI_CHECK(MPI_Iprobe(MPI_ANY_SOURCE, kProgressTag, MPI_COMM_WORLD, &arrived, &status));
      if (!arrived) return reports;
      ProgressMessage message;
      MPI_CHECK(MPI_Recv(&message, sizeof(message), MPI_BYTE, status.MPI_SOURCE, kProgressTag,
                         MPI_COMM_WORLD, MPI_STATUS_IGNORE));
      reports.push_back(
          {status.MPI_SOURCE, message.phase, message.bytes_done, message.bytes_total});
    }
  }

  void Barrier() override {
    MPI_Request request;
    MPI_CHECK(MPI_Ibarrier(MPI_COMM_WORLD, &request));
    WaitAll({&request, 1});
  }

  [[noreturn]] void Abort(int code) override {
    MPI_Abort(MPI_COMM_WORLD, code);
    std::_Exit(code);
  }

 private:
  // A report on its way; the list keeps its address.
  struct Post {
    ProgressMessage message;
    MPI_Request request;
  };

  // Sleeps for as long as it has already waited, so a wait lasts at most twice as long as it must.
  static void WaitForBatch(MPI_Status* status) {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    for (;;) {
      int arrived = 0;
      MPI_CHECK(MPI_Iprobe(0, kBatchTag, MPI_COMM_WORLD, &arrived, status));
      if (arrived) return;
      const auto waited = Clock::now() - start;
      if (waited < kPollFor) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::min<Clock::duration>(waited, kLongestSleep));
      }
    }
  }

  int rank_ = 0, size_ = 1, local_rank_ = 0;
  std::list<Post> posts_;
};

}  // namespace

std::unique_ptr<MpiGroup> MpiGroup::Init(int* argc, char*** argv) {
  if (NumLaunchedRanks() == 1) return MakeSingleRankGroup();
  return std::make_unique<MpiGroupImpl>(argc, argv);
}

}  // namespace bough
