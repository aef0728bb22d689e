#include "worker/server.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/log.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "worker/link_messages.h"

namespace bough {
namespace {

constexpr int kMaxMessageBytes = 64 << 20;
// A router that is cut off without a word is noticed after both together.
constexpr int kKeepaliveTimeMs = 5'000;
constexpr int kKeepaliveTimeoutMs = 5'000;

bool SameLoad(const LoadReport& a, const LoadReport& b) {
  return a.running == b.running && a.waiting == b.waiting && a.free_blocks == b.free_blocks &&
         a.cached_blocks == b.cached_blocks && a.drain_seconds == b.drain_seconds &&
         a.active_unique_blocks == b.active_unique_blocks && a.preemptions == b.preemptions &&
         a.draining == b.draining;
}

}  // namespace

GroupServer::GroupServer(const link::Hello& hello, std::function<absl::Time()> now)
    : now_(std::move(now)), hello_(hello), cached_blocks_(hello.epoch()) {}

GroupServer::~GroupServer() { Shutdown(absl::ZeroDuration()); }

absl::StatusOr<int> GroupServer::Start(const std::string& address) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  // Without this a second group on the same port would silently get half of its streams.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port == 0) {
    server_ = nullptr;
    return absl::UnavailableError(
        absl::StrCat("--listen: cannot listen on ", address,
                     ": the port is taken, or the address is none of this machine"));
  }
  server_->GetHealthCheckService()->SetServingStatus(link::GroupLinkService::service_full_name(),
                                                     false);
  server_->GetHealthCheckService()->SetServingStatus(false);
  return port;
}

void GroupServer::ReportProgress(const RankProgress& progress) {
  absl::MutexLock lock(&mu_);
  const auto same_rank = [&](const RankProgress& p) { return p.rank == progress.rank; };
  const auto it = std::find_if(progress_.begin(), progress_.end(), same_rank);
  if (it == progress_.end()) {
    progress_.push_back(progress);
  } else {
    *it = progress;
  }
  Broadcast(ToMessage(progress));
}

void GroupServer::Serve(const link::Hello& hello, Engine* engine) {
  absl::MutexLock lock(&mu_);
  CHECK(engine_ == nullptr && engine != nullptr);
  CHECK_EQ(hello.epoch(), hello_.epoch());
  hello_ = hello;
  hello_.set_ready(true);
  engine_ = engine;
  load_ = engine->Load();
  LoadChanged();
  for (auto& [id, router] : routers_) Greet(router.stream);
  if (server_ != nullptr && !draining_) server_->GetHealthCheckService()->SetServingStatus(true);
}

void GroupServer::Greet(LinkStream* stream) {
  link::LinkResponse hello;
  *hello.mutable_hello() = hello_;
  stream->Send(std::move(hello));
  if (engine_ == nullptr) {
    for (const RankProgress& progress : progress_) stream->Send(ToMessage(progress));
    return;
  }
  for (link::LinkResponse& chunk : cached_blocks_.Snapshot()) stream->Send(std::move(chunk));
  stream->Send(ToMessage(CurrentLoad()));
}

grpc::ServerBidiReactor<link::LinkRequest, link::LinkResponse>* GroupServer::Link(
    grpc::CallbackServerContext* context) {
  LinkStream* stream = nullptr;
  {
    absl::MutexLock lock(&mu_);
    const uint64_t id = next_link_id_++;
    stream = new LinkStream(id, context, this);
    routers_[id] = {stream, context->peer(), {}};
    Greet(stream);
    if (stopped_) stream->Close({grpc::StatusCode::UNAVAILABLE, "the group is shutting down"});
    LogInfo("router connected", {{"link", id}, {"peer", context->peer()}});
  }
  stream->Start();
  return stream;
}

void GroupServer::OnClosed(uint64_t link_id) {
  absl::MutexLock lock(&mu_);
  const auto it = routers_.find(link_id);
  CHECK(it != routers_.end()) << "link " << link_id;
  LogInfo("router gone", {{"link", link_id},
                          {"router", it->second.name},
                          {"requests_cancelled", it->second.handles.size()}});
  routers_.erase(it);
  if (engine_ != nullptr) engine_->CancelLink(link_id);
}

grpc::Status GroupServer::OnRequest(uint64_t link_id, link::LinkRequest* request) {
  if (request->has_submit()) return OnSubmit(link_id, request->mutable_submit());
  absl::MutexLock lock(&mu_);
  Router& router = routers_.at(link_id);
  switch (request->message_case()) {
    case link::LinkRequest::kHello:
      router.name = request->hello().router();
      return grpc::Status::OK;
    case link::LinkRequest::kCancel:
      if (engine_ != nullptr) {
        engine_->Cancel({link_id, request->cancel().handle()}, request->cancel().choice());
      }
      return grpc::Status::OK;
    case link::LinkRequest::kSnapshot:
      if (engine_ == nullptr) return grpc::Status::OK;  // comes with Hello{ready}
      for (link::LinkResponse& chunk : cached_blocks_.Snapshot()) {
        router.stream->Send(std::move(chunk));
      }
      return grpc::Status::OK;
    case link::LinkRequest::kDrain:
      if (engine_ != nullptr && !draining_) engine_->SetDraining(request->drain().on());
      return grpc::Status::OK;
    case link::LinkRequest::kSubmit:
    case link::LinkRequest::MESSAGE_NOT_SET:
      break;
  }
  return {grpc::StatusCode::INVALID_ARGUMENT, "message: must be set to one that this group knows"};
}

grpc::Status GroupServer::OnSubmit(uint64_t link_id, link::Submit* submit) {
  // A long prompt is copied before the lock is taken: the engine thread waits for it.
  Request request;
  const std::vector<FieldViolation> violations = ToRequest(link_id, submit, now_(), &request);
  absl::MutexLock lock(&mu_);
  Router& router = routers_.at(link_id);
  if (engine_ == nullptr) {
    router.stream->Send(Refusal(*submit, absl::StatusCode::kUnavailable, "LOADING",
                                "the group is loading its model"));
    return grpc::Status::OK;
  }
  if (submit->epoch() != hello_.epoch()) {
    router.stream->Send(
        Refusal(*submit, absl::StatusCode::kAborted, "STALE_EPOCH",
                absl::StrCat("epoch: must be ", hello_.epoch(), ", is ", submit->epoch())));
    return grpc::Status::OK;
  }
  if (router.handles.contains(submit->handle())) {
    return {grpc::StatusCode::INVALID_ARGUMENT,
            absl::StrCat("submit.handle: ", submit->handle(), " is in flight on this stream")};
  }
  if (!violations.empty()) {
    router.stream->Send(InvalidSubmit(*submit, violations));
    return grpc::Status::OK;
  }
  router.handles.insert(request.key.handle);
  since_step_.requests += 1;
  since_step_.prompt_tokens += static_cast<int64_t>(request.prompt_ids.size());
  engine_->Submit(std::move(request));
  LoadChanged();
  return grpc::Status::OK;
}

void GroupServer::Broadcast(const link::LinkResponse& message) {
  for (auto& [id, router] : routers_) router.stream->Send(message);
}

void GroupServer::BeforeStep() {
  absl::MutexLock lock(&mu_);
  in_step_ = std::exchange(since_step_, {});
}

void GroupServer::Publish(const StepEvents& events) {
  absl::MutexLock lock(&mu_);
  in_step_ = {};
  if (auto delta = cached_blocks_.Apply(events.cache)) Broadcast(*delta);
  for (const AckEvent& ack : events.acks) {
    const auto it = routers_.find(ack.key.link);
    if (it != routers_.end()) it->second.stream->Send(ToMessage(ack));
  }
  absl::flat_hash_map<uint64_t, link::LinkResponse> outputs;
  for (const TokenEvent& token : events.tokens) {
    ToRow(token, outputs[token.key.link].mutable_step_output()->add_rows());
  }
  for (auto& [link_id, output] : outputs) {
    const auto it = routers_.find(link_id);
    if (it != routers_.end()) it->second.stream->Send(std::move(output));
  }
  for (const DoneEvent& done : events.dones) {
    const auto it = routers_.find(done.key.link);
    if (it == routers_.end()) continue;
    it->second.handles.erase(done.key.handle);
    it->second.stream->Send(ToMessage(done));
  }
  if (!SameLoad(load_, events.load)) LoadChanged();
  load_ = events.load;
}

LoadReport GroupServer::CurrentLoad() const {
  LoadReport load = load_;
  load.waiting += since_step_.requests + in_step_.requests;
  load.drain_seconds += static_cast<double>(since_step_.prompt_tokens + in_step_.prompt_tokens) *
                        load.prefill_seconds_per_token;
  load.draining = load.draining || draining_;
  return load;
}

bool GroupServer::IsBusy() const {
  return load_.running + load_.waiting + since_step_.requests + in_step_.requests > 0;
}

void GroupServer::LoadChanged() {
  load_changed_ = true;
  load_changed_cv_.SignalAll();
}

int GroupServer::num_routers() const {
  absl::MutexLock lock(&mu_);
  return static_cast<int>(routers_.size());
}

absl::Time GroupServer::LoadDue() const {
  return engine_ == nullptr ? absl::InfiniteFuture() : pacer_.Due(IsBusy(), load_changed_);
}

void GroupServer::PublishLoadIfDue() {
  absl::MutexLock lock(&mu_);
  const absl::Time now = now_();
  if (LoadDue() > now) return;
  Broadcast(ToMessage(CurrentLoad()));
  pacer_.Sent(now);
  load_changed_ = false;
}

bool GroupServer::WaitForLoadDue() {
  absl::MutexLock lock(&mu_);
  while (!stopped_) {
    const absl::Duration left = LoadDue() - now_();
    if (left <= absl::ZeroDuration()) return true;
    load_changed_cv_.WaitWithTimeout(&mu_, left);
  }
  return false;
}

void GroupServer::Drain() {
  absl::MutexLock lock(&mu_);
  draining_ = true;
  if (engine_ != nullptr) engine_->SetDraining(true);
  if (server_ != nullptr) server_->GetHealthCheckService()->SetServingStatus(false);
  LoadChanged();
}

void GroupServer::Shutdown(absl::Duration grace) {
  {
    absl::MutexLock lock(&mu_);
    if (stopped_ || server_ == nullptr) return;
    stopped_ = true;
    load_changed_cv_.SignalAll();
    for (auto& [id, router] : routers_) {
      router.stream->Close({grpc::StatusCode::UNAVAILABLE, "the group is shutting down"});
    }
  }
  server_->Shutdown(absl::ToChronoTime(absl::Now() + grace));
  server_->Wait();
}

}  // namespace bough
