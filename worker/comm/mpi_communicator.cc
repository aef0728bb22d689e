// All-reduce as an exchange of slices: rank r is sent slice r of everybody, adds them up in rank
// order, and sends the sum back. Two latencies and 2 (R-1)/R of the data per rank, whatever R is.
// Short vectors skip the way back: each rank gets everything and adds in that same order, so the
// bits agree.
#include <mpi.h>

#include <algorithm>
#include <vector>

#include "common/check.h"
#include "worker/comm/communicator.h"
#include "worker/comm/mpi_wait.h"
#include "worker/comm/single_rank.h"

namespace bough {
namespace {

// Up to here one latency costs more than R times the additions. 2 ranks on 2 cores of an EPYC.
constexpr int64_t kShortCount = 2048;

class MpiCommunicator : public Communicator {
 public:
  explicit MpiCommunicator(const MpiGroup& group) : rank_(group.rank()), size_(group.size()) {
    MPI_CHECK(MPI_Comm_dup(MPI_COMM_WORLD, &comm_));
    MPI_CHECK(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN));
  }
  ~MpiCommunicator() override { MPI_CHECK(MPI_Comm_free(&comm_)); }

  void AllReduceSum(void* values, int64_t count, DType dtype) override {
    CHECK(dtype == DType::kF32) << "is " << Name(dtype) << ", MPI sums f32";
    if (count == 0) return;
    float* const data = static_cast<float*>(values);
    if (count <= kShortCount) {
      // Everybody's vector, whole.
      const std::vector<Slice> mine(size_, Slice{0, count});
      Exchange(data, mine, count);
      SumInRankOrder(data, count, data);
      return;
    }
    std::vector<Slice> slices(size_);
    for (int r = 0; r < size_; ++r) slices[r] = {count * r / size_, count * (r + 1) / size_};
    const Slice own = slices[rank_];
    Exchange(data, slices, own.size());
    SumInRankOrder(data + own.begin, own.size(), data + own.begin);
    ShareSlices(data, slices);
  }

  void Gather(const float* in, int64_t count, float* out) override {
    const int floats = static_cast<int>(count);
    CHECK_EQ(floats, count);
    MPI_Request request;
    MPI_CHECK(MPI_Igather(in, floats, MPI_FLOAT, out, floats, MPI_FLOAT, 0, comm_, &request));
    WaitAll({&request, 1});
  }

  void Broadcast(int32_t* data, int64_t count) override {
    MPI_Request request;
    MPI_CHECK(MPI_Ibcast(data, static_cast<int>(count), MPI_INT32_T, 0, comm_, &request));
    WaitAll({&request, 1});
  }

 private:
  struct Slice {
    int64_t begin = 0, end = 0;
    int64_t size() const { return end - begin; }
  };

  // Sends slice r of `data` to rank r; inbox_ gets `count` floats of every other rank, by rank.
  void Exchange(const float* data, const std::vector<Slice>& slices, int64_t count) {
    inbox_.resize(size_ * count);
    requests_.clear();
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      MPI_CHECK(MPI_Irecv(&inbox_[r * count], static_cast<int>(count), MPI_FLOAT, r, 0, comm_,
                          &requests_.emplace_back()));
    }
    SendToOthers([&](int to) { return data + slices[to].begin; },
                 [&](int to) { return slices[to].size(); });
    WaitAll(requests_);
  }

  // out = inbox of rank 0 + ... + inbox of rank R-1, with `own` in this rank's place. May alias.
  void SumInRankOrder(const float* own, int64_t count, float* out) {
    std::copy(own, own + count, &inbox_[rank_ * count]);
    std::copy(inbox_.data(), inbox_.data() + count, out);
    for (int r = 1; r < size_; ++r) {
      const float* in = &inbox_[r * count];
      for (int64_t i = 0; i < count; ++i) out[i] += in[i];
    }
  }

  // Rank r's slice of `data` to everybody.
  void ShareSlices(float* data, const std::vector<Slice>& slices) {
    requests_.clear();
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      MPI_CHECK(MPI_Irecv(data + slices[r].begin, static_cast<int>(slices[r].size()), MPI_FLOAT, r,
                          0, comm_, &requests_.emplace_back()));
    }
    SendToOthers([&](int) { return data + slices[rank_].begin; },
                 [&](int) { return slices[rank_].size(); });
    WaitAll(requests_);
  }

  template <typename Data, typename Count>
  void SendToOthers(Data data, Count count) {
    for (int to = 0; to < size_; ++to) {
      if (to == rank_) continue;
      MPI_CHECK(MPI_Isend(data(to), static_cast<int>(count(to)), MPI_FLOAT, to, 0, comm_,
                          &requests_.emplace_back()));
    }
  }

  const int rank_, size_;
  MPI_Comm comm_;
  std::vector<float> inbox_;  // [size, count]
  std::vector<MPI_Request> requests_;
};

}  // namespace

std::unique_ptr<Communicator> MakeCpuCommunicator(MpiGroup* group) {
  if (group->size() == 1) return MakeSingleRankCommunicator();
  return std::make_unique<MpiCommunicator>(*group);
}

}  // namespace bough
