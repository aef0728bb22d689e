// One GenerateStream call.
#pragma once

#include <deque>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "grpcpp/grpcpp.h"
#include "router/call.h"
#include "router/router.h"

namespace bough::router {

// Deletes itself when gRPC is done with it. Events come under the router's lock, the rest from
// gRPC's threads; lock order: router, then call.
//
//   open --last event--> ending --queue written--> finished
class StreamCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  StreamCall(Router* router, grpc::CallbackServerContext* context, const grpc::ByteBuffer& bytes);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override { delete this; }

 private:
  // OnDone and OnCancel are short: gRPC need not wake a thread of its executor for them.
  bool InternalInlineable() override { return true; }

  // Reads and starts the request, or says why not.
  std::optional<ApiError> Begin(const grpc::ByteBuffer& bytes);
  // The sink. False = more than max_pending_bytes wait for the client.
  bool OnEvent(const ClientEvent& event);
  void Write(const v1::GenerateStreamResponse& message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Starts the next write, or finishes when everything was written.
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Router* const router_;
  Call call_;
  std::shared_ptr<const Request> request_;
  uint64_t handle_ = 0;

  absl::Mutex mutex_;
  std::deque<grpc::ByteBuffer> queue_ ABSL_GUARDED_BY(mutex_);  // the front is being written
  int64_t pending_bytes_ ABSL_GUARDED_BY(mutex_) = 0;           // of queue_
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;                // stays true with the last message
  std::optional<grpc::Status> status_ ABSL_GUARDED_BY(mutex_);  // set: ending
};

}  // namespace bough::router
