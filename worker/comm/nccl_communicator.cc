#include <nccl.h>

#include <cstring>
#include <vector>

#include "common/check.h"
#include "worker/comm/communicator.h"
#include "worker/comm/single_rank.h"

// NCCL's errors leave the communicator broken: the group ends and is restarted.
#define NCCL_CHECK(expr)                                                                     \
  do {                                                                                       \
    const ncclResult_t nccl_result_ = (expr);                                                \
    CHECK(nccl_result_ == ncclSuccess) << #expr << ": " << ncclGetErrorString(nccl_result_); \
  } while (false)

namespace bough {
namespace {

ncclDataType_t NcclType(DType dtype) {
  CHECK(dtype == DType::kF32 || dtype == DType::kBF16) << Name(dtype);
  return dtype == DType::kF32 ? ncclFloat32 : ncclBfloat16;
}

// Rank 0's id, at every rank.
ncclUniqueId ShareId(MpiGroup* group) {
  ncclUniqueId id;
  if (group->rank() == 0) {
    NCCL_CHECK(ncclGetUniqueId(&id));
    group->Send({reinterpret_cast<const uint8_t*>(&id), sizeof(id)});
    return id;
  }
  const std::vector<uint8_t> bytes = group->Receive();
  CHECK_EQ(bytes.size(), sizeof(id));
  std::memcpy(&id, bytes.data(), sizeof(id));
  return id;
}

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(MpiGroup* group, Stream stream)
      : rank_(group->rank()), size_(group->size()), stream_(stream) {
    NCCL_CHECK(ncclCommInitRank(&comm_, size_, ShareId(group), rank_));
  }
  ~NcclCommunicator() override { NCCL_CHECK(ncclCommDestroy(comm_)); }

  void AllReduceSum(void* data, int64_t count, DType dtype) override {
    NCCL_CHECK(ncclAllReduce(data, data, count, NcclType(dtype), ncclSum, comm_, stream_));
  }

  void Gather(const float* in, int64_t count, float* out) override {
    NCCL_CHECK(ncclGroupStart());
    NCCL_CHECK(ncclSend(in, count, ncclFloat32, 0, comm_, stream_));
    for (int from = 0; rank_ == 0 && from < size_; ++from) {
      NCCL_CHECK(ncclRecv(out + from * count, count, ncclFloat32, from, comm_, stream_));
    }
    NCCL_CHECK(ncclGroupEnd());
  }

  void Broadcast(int32_t* data, int64_t count) override {
    NCCL_CHECK(ncclBroadcast(data, data, count, ncclInt32, 0, comm_, stream_));
  }

 private:
  const int rank_, size_;
  const Stream stream_;
  ncclComm_t comm_ = nullptr;
};

}  // namespace

std::unique_ptr<Communicator> MakeCudaCommunicator(MpiGroup* group, Stream stream) {
  if (group->size() == 1) return MakeSingleRankCommunicator();
  return std::make_unique<NcclCommunicator>(group, stream);
}

}  // namespace bough
