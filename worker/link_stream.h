// One router's stream: reads go to a handler, writes queue here and never block the sender.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "bough/group/v1/link.grpc.pb.h"
#include "grpcpp/grpcpp.h"

namespace bough {

// Called on gRPC's threads; for one stream never two at once, but for OnWritable.
class LinkHandler {
 public:
  virtual ~LinkHandler() = default;
  // Returns OK, or the status with which the stream must end: the router broke the protocol.
  virtual grpc::Status OnRequest(uint64_t link_id, group::v1::LinkRequest* request) = 0;
  // LinkStream::Writable said no and would say yes now.
  virtual void OnWritable(uint64_t link_id) = 0;
  // The last call about this link; Send must not be called after it returns. (OnWritable may run
  // beside it.)
  virtual void OnClosed(uint64_t link_id) = 0;
};

// Deletes itself when gRPC is done with it, which is after OnClosed.
class LinkStream : public grpc::ServerBidiReactor<group::v1::LinkRequest, group::v1::LinkResponse> {
 public:
  // `handler` outlives the server.
  LinkStream(uint64_t id, grpc::CallbackServerContext* context, LinkHandler* handler);

  // Takes the first read. Called once.
  void Start();
  // Thread-safe. A router that lets more than `kMaxQueuedBytes` pile up is cut off.
  void Send(group::v1::LinkResponse message);
  // Thread-safe. Whether little is queued; if not, the handler hears OnWritable once that is so.
  // For bulk that must not stand in front of what comes after it.
  bool Writable();
  // Thread-safe. Ends the stream once everything sent so far has been written.
  void Close(grpc::Status status);

  static constexpr size_t kMaxQueuedBytes = 64u << 20;
  static constexpr size_t kWritableBytes = 256u << 10;

 private:
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone() override;

  // What to do once mu_ is released: gRPC calls are made without it.
  enum class Next { kNothing, kWrite, kFinish };
  Next Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Do(Next next);

  const uint64_t id_;
  grpc::CallbackServerContext* const context_;
  LinkHandler* const handler_;
  group::v1::LinkRequest request_;

  absl::Mutex mu_;
  std::deque<group::v1::LinkResponse> queue_ ABSL_GUARDED_BY(mu_);
  size_t queued_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool tell_writable_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<grpc::Status> closing_ ABSL_GUARDED_BY(mu_);

  // Belong to the write, or the finish, in flight.
  group::v1::LinkResponse current_;
  grpc::Status final_status_;
};

}  // namespace bough
