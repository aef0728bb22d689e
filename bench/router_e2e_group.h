// Worker groups without a model, for bench-router-e2e: what a router hears of a group under load, as soon
// as it can be said. Every request is answered with one token in the step that follows its arrival; a step
// takes whatever has arrived, as an engine's does.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "bough/group/v1/link.grpc.pb.h"
#include "common/block_hash.h"
#include "grpcpp/grpcpp.h"

namespace bough {

inline constexpr int kE2eVocabSize = 32000;

// Any number of groups: each link is one of its own. Load and the blocks newly cached are reported every
// 10 ms.
class E2eGroups final : public group::v1::GroupLinkService::Service {
 public:
  // Listens on `num_ports` ports of the loopback, so that each group has a connection of its own.
  explicit E2eGroups(int num_ports);

  const std::vector<int>& ports() const { return ports_; }
  void Wait() { server_->Wait(); }

 private:
  using Stream = grpc::ServerReaderWriter<group::v1::LinkResponse, group::v1::LinkRequest>;

  grpc::Status Link(grpc::ServerContext* context, Stream* stream) override;

  std::vector<int> ports_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace bough
