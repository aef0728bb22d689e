// The one ordered stream to a group: opened, kept open, opened again with backoff when it ends.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "bough/group/v1/link.grpc.pb.h"
#include "router/group_messages.h"

namespace bough::router {

// What a link reports, from gRPC's threads, one call at a time per connection: events, then down.
// Whoever receives it takes his lock and then drops what IsCurrent(connection) denies: reports of a
// connection that Reset gave up.
struct LinkCallbacks {
  std::function<void(uint64_t connection, GroupEvent, absl::Time now)> event;
  std::function<void(uint64_t connection, const std::string& why, absl::Time now)> down;
};

// Thread-safe. All methods may be called under the lock that the callbacks take: none calls back.
class GroupLink {
 public:
  GroupLink(const std::string& address, const std::string& router_name, LinkCallbacks callbacks);
  // Waits until gRPC is done with the last connection.
  ~GroupLink();

  // Opens the stream when none is open and the backoff is over.
  void Tick(absl::Time now);
  // Dropped when no stream is open.
  void Send(const GroupCommand& command);
  // Gives the present stream up; the next Tick opens another.
  void Reset();
  bool IsCurrent(uint64_t connection);

 private:
  class Connection;

  const std::string router_name_;
  const LinkCallbacks callbacks_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<group::v1::GroupLinkService::Stub> stub_;

  absl::Mutex mutex_;
  Connection* current_ ABSL_GUARDED_BY(mutex_) = nullptr;  // may be written to
  uint64_t current_id_ ABSL_GUARDED_BY(mutex_) = 0;        // may report; 0 = none
  uint64_t last_id_ ABSL_GUARDED_BY(mutex_) = 0;
  int num_open_ ABSL_GUARDED_BY(mutex_) = 0;  // connections that gRPC has not let go yet
  absl::Time next_attempt_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  absl::Duration backoff_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace bough::router
