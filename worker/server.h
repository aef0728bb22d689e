// The group's side of link.proto: takes routers' streams, feeds the engine, and tells every router
// what the engine did.
//
//   listening (not ready) ── Serve() ──► serving ── Drain() ──► draining ── Shutdown() ──► closed
//
// A router may connect in any state. While not ready it gets Hello{ready=false} and LoadProgress,
// and its Submits end in UNAVAILABLE.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "bough/group/v1/link.grpc.pb.h"
#include "worker/cached_blocks.h"
#include "worker/comm/mpi_group.h"
#include "worker/engine.h"
#include "worker/link_stream.h"
#include "worker/load_pacer.h"

namespace bough {

class GroupServer : private group::v1::GroupLinkService::CallbackService, private LinkHandler {
 public:
  // `hello` holds what is known before the model is: group, epoch, device, tp_size, ep_size.
  // `now` is the clock that Engine::Step gets too; it never goes back.
  GroupServer(const group::v1::Hello& hello, std::function<absl::Time()> now);
  ~GroupServer() override;

  // Opens host:port, with health and reflection beside the link; returns the port. UNAVAILABLE when
  // it is taken.
  absl::StatusOr<int> Start(const std::string& address);

  // Thread-safe.
  void ReportProgress(const RankProgress& progress);

  // The model is there: `hello` is complete, Submits go to `engine` from now on. Called once;
  // `engine` outlives Shutdown.
  void Serve(const group::v1::Hello& hello, Engine* engine);

  // Engine thread, around each Engine::Step: before it, and after one that did something.
  void BeforeStep();
  void Publish(const StepEvents& events);

  // Streams that are open. Thread-safe.
  int num_routers() const;

  // Sends the load to all routers if it is due. Thread-safe.
  void PublishLoadIfDue();
  // Blocks until it is due; false once the server has stopped. Thread-safe, in real time.
  bool WaitForLoadDue();

  // New Submits end in DRAINING whatever routers say from now on; health is NOT_SERVING.
  void Drain();

  // Ends all streams with UNAVAILABLE once what was published has been written, waiting at most
  // `grace`. Thread-safe.
  void Shutdown(absl::Duration grace);

 private:
  struct Router {
    LinkStream* stream;
    std::string name;                       // as it calls itself, for logs
    absl::flat_hash_set<uint64_t> handles;  // in flight
    CacheReader cache;
    uint64_t submits = 0;  // that came in
  };
  // Requests handed to the engine that its last report cannot know.
  struct Pending {
    int requests = 0;
    int64_t prompt_tokens = 0;  // not expected in the prefix cache
  };

  grpc::ServerBidiReactor<group::v1::LinkRequest, group::v1::LinkResponse>* Link(
      grpc::CallbackServerContext* context) override;
  grpc::Status OnRequest(uint64_t link_id, group::v1::LinkRequest* request) override;
  void OnWritable(uint64_t link_id) override;
  void OnClosed(uint64_t link_id) override;

  grpc::Status OnSubmit(uint64_t link_id, group::v1::Submit* submit);
  void Greet(const Router& router) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SendBuckets(Router* router) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SendLoad(const Router& router) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void FillLoad(const Router& router, group::v1::Load* load) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Broadcast(const group::v1::LinkResponse& message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  LoadReport CurrentLoad() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Time LoadDue() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool IsBusy() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void LoadChanged() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::function<absl::Time()> now_;
  std::unique_ptr<grpc::Server> server_;

  mutable absl::Mutex mu_;
  absl::CondVar load_changed_cv_;
  group::v1::Hello hello_ ABSL_GUARDED_BY(mu_);
  Engine* engine_ ABSL_GUARDED_BY(mu_) = nullptr;  // nullptr: not ready
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t next_link_id_ ABSL_GUARDED_BY(mu_) = 1;
  absl::flat_hash_map<uint64_t, Router> routers_ ABSL_GUARDED_BY(mu_);  // by link id
  CachedBlocks cached_blocks_ ABSL_GUARDED_BY(mu_);
  std::vector<RankProgress> progress_ ABSL_GUARDED_BY(mu_);  // by rank; the last word of each

  LoadReport load_ ABSL_GUARDED_BY(mu_);  // as of the last step
  bool load_changed_ ABSL_GUARDED_BY(mu_) = false;
  LoadPacer pacer_ ABSL_GUARDED_BY(mu_);
  Pending since_step_ ABSL_GUARDED_BY(mu_), in_step_ ABSL_GUARDED_BY(mu_);
};

}  // namespace bough
