// The real thing: one router and two groups of two ranks on the demo model, g0 with TP=2 and g1
// with EP=2, on free ports of this machine.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bough/v1/admin.grpc.pb.h"
#include "bough/v1/generation.grpc.pb.h"
#include "bough/v1/model.grpc.pb.h"
#include "grpcpp/grpcpp.h"
#include "tests/integration/process.h"

namespace bough::integration {

// A stream read to its end, or what came of it.
struct Streamed {
  grpc::Status status;
  v1::StreamStart start;
  v1::StreamEnd end;
  std::vector<std::string> texts;               // per choice
  std::vector<std::vector<int32_t>> token_ids;  // per choice
};

class ServingSystem {
 public:
  static constexpr int kNumGroups = 2;

  // Returns when both groups are ready; CHECKs that they become so.
  ServingSystem();

  Streamed Stream(const v1::GenerateRequest& request,
                  absl::Duration timeout = absl::Seconds(60)) const;
  v1::Group Group(const std::string& name) const;
  // Requests go elsewhere until Undrain.
  void Drain(const std::string& name) const;
  void Undrain(const std::string& name) const;
  // True when some group holds blocks for a running request, within 10 s.
  bool BlocksAreInUse() const;
  // True when all blocks of the groups that are ready are free or cached, within 10 s.
  bool AllBlocksComeBack() const;

  // SIGKILL to mpirun and its ranks.
  void KillGroup(const std::string& name);

  v1::Model model() const { return model_; }
  v1::GenerationService::Stub& generation() const { return *generation_; }
  // The exposition text of the router, or of a group's rank.
  std::string ScrapeRouter() const;
  std::string ScrapeRank(int group, int rank) const;

 private:
  std::unique_ptr<Process> StartGroup(int index, const std::vector<std::string>& layout);
  std::string Logs() const;
  bool AnyBlockInUse() const;

  int listen_port_[kNumGroups], metrics_port_[kNumGroups];
  int router_port_, admin_port_, router_metrics_port_;
  std::unique_ptr<Process> groups_[kNumGroups], router_;
  std::unique_ptr<v1::GenerationService::Stub> generation_;
  std::unique_ptr<v1::AdminService::Stub> admin_;
  v1::Model model_;
};

// `num_tokens` ids that differ for different `salt`: the same salt, the same prefix.
std::vector<int32_t> Prompt(int num_tokens, int salt);

// Greedy, exactly `max_tokens` tokens, ids returned.
v1::GenerateRequest GreedyRequest(const std::vector<int32_t>& prompt, int max_tokens);

}  // namespace bough::integration
