#include "router/group_link.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "router/clock.h"
#include "router/link_translation.h"

namespace bough::router {
namespace {

constexpr absl::Duration kMinBackoff = absl::Milliseconds(100);
constexpr absl::Duration kMaxBackoff = absl::Seconds(2);

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address) {
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(
      -1);  // a step of 1024 samples with logprobs passes the default 4 MiB
  args.SetMaxSendMessageSize(-1);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), args);
}

}  // namespace

// One stream; lives until gRPC's OnDone and deletes itself there.
class GroupLink::Connection
    : public grpc::ClientBidiReactor<group::v1::LinkRequest, group::v1::LinkResponse> {
 public:
  Connection(GroupLink* link, uint64_t id) : link_(link), id_(id) {
    link_->stub_->async()->Link(&context_, this);
    group::v1::LinkRequest hello;
    hello.mutable_hello()->set_router(link_->router_name_);
    Write(std::move(hello));
    StartRead(&response_);
    // Keeps OnDone away while writes may still be started.
    AddHold();
    StartCall();
  }

  void Write(group::v1::LinkRequest request) {
    absl::MutexLock lock(&mutex_);
    if (closed_) return;
    queue_.push_back(std::move(request));
    if (queue_.size() == 1) StartWrite(&queue_.front());
  }

  void Cancel() {
    context_.TryCancel();
    Close();
  }

 private:
  void OnWriteDone(bool ok) override {
    if (!ok) return Close();
    absl::MutexLock lock(&mutex_);
    queue_.pop_front();
    if (queue_.empty() || closed_) return;
    // What is followed at once by more leaves together with it.
    grpc::WriteOptions options;
    if (queue_.size() > 1) options.set_buffer_hint();
    StartWrite(&queue_.front(), options);
  }

  void OnReadDone(bool ok) override {
    if (!ok) return Close();
    const absl::Time now = MonotonicNow();
    absl::StatusOr<GroupEvent> event = FromProto(response_);
    if (!event.ok()) {
      why_ = std::string(event.status().message());
      context_.TryCancel();
    } else {
      connected_ = true;
      link_->callbacks_.event(id_, *std::move(event), now);
    }
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    if (why_.empty()) {
      why_ = status.ok()
                 ? "the group closed the stream"
                 : absl::StrCat(status.error_message(), " (code ", status.error_code(), ")");
    }
    GroupLink* const link = link_;
    {
      absl::MutexLock lock(&link->mutex_);
      if (link->current_ == this) link->current_ = nullptr;
    }
    const absl::Time now = MonotonicNow();
    link->callbacks_.down(id_, why_, now);
    absl::MutexLock lock(&link->mutex_);
    if (link->current_id_ == id_) {
      link->current_id_ = 0;
      if (connected_) link->backoff_ = kMinBackoff;
      link->next_attempt_ = now + link->backoff_;
      link->backoff_ = std::min(2 * link->backoff_, kMaxBackoff);
    }
    delete this;
    --link->num_open_;  // last: the link may go once this is zero
  }

  // No write is started after this.
  void Close() {
    {
      absl::MutexLock lock(&mutex_);
      if (std::exchange(closed_, true)) return;
    }
    RemoveHold();
  }

  GroupLink* const link_;
  const uint64_t id_;
  grpc::ClientContext context_;
  group::v1::LinkResponse response_;
  bool connected_ = false;  // read side only, as why_
  std::string why_;
  absl::Mutex mutex_;
  std::deque<group::v1::LinkRequest> queue_ ABSL_GUARDED_BY(mutex_);  // the front is being written
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

GroupLink::GroupLink(const std::string& address, const std::string& router_name,
                     LinkCallbacks callbacks)
    : router_name_(router_name),
      callbacks_(std::move(callbacks)),
      channel_(MakeChannel(address)),
      stub_(group::v1::GroupLinkService::NewStub(channel_)),
      backoff_(kMinBackoff) {}

GroupLink::~GroupLink() {
  Reset();
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(
      +[](int* open) { return *open == 0; }, &num_open_));
}

void GroupLink::Tick(absl::Time now) {
  absl::MutexLock lock(&mutex_);
  if (current_id_ != 0 || now < next_attempt_) return;
  ++num_open_;
  current_id_ = ++last_id_;
  current_ = new Connection(this, current_id_);
}

void GroupLink::Send(const GroupCommand& command) {
  group::v1::LinkRequest request = ToProto(command);
  absl::MutexLock lock(&mutex_);
  if (current_ != nullptr) current_->Write(std::move(request));
}

void GroupLink::Reset() {
  absl::MutexLock lock(&mutex_);
  if (current_ != nullptr) current_->Cancel();
  current_ = nullptr;
  current_id_ = 0;
  next_attempt_ = absl::InfinitePast();
}

bool GroupLink::IsCurrent(uint64_t connection) {
  absl::MutexLock lock(&mutex_);
  return connection == current_id_;
}

}  // namespace bough::router
