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

// A router that expects `expected` seconds of queue here may be better off elsewhere.
bool IsMuchLonger(double wait, double expected) {
  return wait > expected + std::max(0.05, 0.25 * expected);
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
  for (auto& [id, router] : routers_) Greet(router);
  if (server_ != nullptr && !draining_) server_->GetHealthCheckService()->SetServingStatus(true);
}

void GroupServer::Greet(const Router& router) {
  link::LinkResponse hello;
  *hello.mutable_hello() = hello_;
  router.stream->Send(std::move(hello));
  if (engine_ != nullptr) return SendLoad(router);
  for (const RankProgress& progress : progress_) router.stream->Send(ToMessage(progress));
}

void GroupServer::SendLoad(const Router& router) {
  link::LinkResponse response;
  FillLoad(router, response.mutable_load());
  router.stream->Send(std::move(response));
}

void GroupServer::FillLoad(const Router& router, link::Load* load) const {
  *load = ToLoad(CurrentLoad());
  load->set_epoch(hello_.epoch());
  load->set_cache_seq(cached_blocks_.seq());
  load->set_cache_digest(cached_blocks_.digest());
  load->set_submits(router.submits);
}

// Only as fast as the router reads, so that a token never waits behind a whole snapshot, nor the
// engine for the lock.
void GroupServer::SendBuckets(Router* router) {
  while (router->cache.pending.any() && router->stream->Writable()) {
    router->stream->Send(cached_blocks_.NextBuckets(&router->cache));
  }
}

void GroupServer::OnWritable(uint64_t link_id) {
  absl::MutexLock lock(&mu_);
  const auto it = routers_.find(link_id);
  if (it != routers_.end()) SendBuckets(&it->second);
}

grpc::ServerBidiReactor<link::LinkRequest, link::LinkResponse>* GroupServer::Link(
    grpc::CallbackServerContext* context) {
  LinkStream* stream = nullptr;
  {
    absl::MutexLock lock(&mu_);
    const uint64_t id = next_link_id_++;
    stream = new LinkStream(id, context, this);
    Router& router = routers_[id];
    router.stream = stream;
    router.name = context->peer();
    Greet(router);
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
    case link::LinkRequest::kCacheSync:
      for (auto& response : cached_blocks_.OnSync(request->cache_sync(), &router.cache)) {
        router.stream->Send(std::move(response));
      }
      SendBuckets(&router);
      return grpc::Status::OK;
    case link::LinkRequest::kDigests:
      if (auto response = cached_blocks_.OnDigestsRequest(request->digests())) {
        router.stream->Send(*std::move(response));
      }
      return grpc::Status::OK;
    case link::LinkRequest::kBuckets:
      cached_blocks_.OnBucketsRequest(request->buckets(), &router.cache);
      SendBuckets(&router);
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
  ++router.submits;
  if (engine_ == nullptr) {
    router.stream->Send(Refusal(*submit, absl::StatusCode::kUnavailable, "LOADING",
                                "the group is loading its model"));
    return grpc::Status::OK;
  }
  if (submit->group() != hello_.group() || submit->epoch() != hello_.epoch()) {
    router.stream->Send(
        Refusal(*submit, absl::StatusCode::kAborted, "STALE_EPOCH",
                absl::StrCat("group, epoch: must be ", hello_.group(), ", ", hello_.epoch(),
                             ", are ", submit->group(), ", ", submit->epoch())));
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
  if (submit->has_expected_wait_seconds() && !CurrentLoad().draining &&
      IsMuchLonger(CurrentLoad().drain_seconds, submit->expected_wait_seconds())) {
    link::LinkResponse response;
    response.mutable_refused()->set_handle(submit->handle());
    response.mutable_refused()->set_attempt(submit->attempt());
    FillLoad(router, response.mutable_refused()->mutable_load());
    router.stream->Send(std::move(response));
    return grpc::Status::OK;
  }
  router.handles.insert(request.key.handle);
  since_step_.requests += 1;
  since_step_.prompt_tokens +=
      static_cast<int64_t>(request.prompt_ids.size()) - request.expected_cached_tokens;
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
  if (auto delta = cached_blocks_.Apply(events.cache)) {
    for (auto& [id, router] : routers_) {
      if (router.cache.follows) router.stream->Send(*delta);
    }
  }
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
  for (const auto& [id, router] : routers_) SendLoad(router);
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
