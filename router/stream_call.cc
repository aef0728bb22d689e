#include "router/stream_call.h"

#include <utility>

#include "router/api_errors.h"
#include "router/api_translation.h"
#include "router/unknown_fields.h"

namespace bough::router {

StreamCall::StreamCall(Router* router, grpc::CallbackServerContext* context,
                       const grpc::ByteBuffer& bytes)
    : router_(router), call_(router, context) {
  if (const std::optional<ApiError> error = Begin(bytes)) {
    router_->metrics().CountRejected(error->reason);
    Finish(call_.Finish(&*error, {}));
  }
}

std::optional<ApiError> StreamCall::Begin(const grpc::ByteBuffer& bytes) {
  v1::GenerateStreamRequest message;
  if (auto error = ParseMessage(bytes, router_->config().max_request_bytes, &message)) {
    return error;
  }
  if (auto unknown = FindUnknownFields(message); !unknown.empty()) {
    return InvalidRequest(std::move(unknown));
  }
  auto read = call_.Read(message.request(), /*stream=*/true);
  if (auto* error = std::get_if<ApiError>(&read)) return std::move(*error);
  request_ = std::get<std::shared_ptr<Request>>(std::move(read));
  StartSendInitialMetadata();
  return router_->Start(
      request_, [this](const ClientEvent& event) { return OnEvent(event); }, &handle_);
}

bool StreamCall::OnEvent(const ClientEvent& event) {
  absl::MutexLock lock(&mutex_);
  v1::GenerateStreamResponse message;
  if (const auto* start = std::get_if<StartEvent>(&event)) {
    *message.mutable_start() = ToProto(*start, *request_, router_->config().served_model_name);
  } else if (const auto* delta = std::get_if<DeltaEvent>(&event)) {
    *message.mutable_delta() = ToProto(*delta);
  } else if (const auto* finish = std::get_if<FinishEvent>(&event)) {
    *message.mutable_finish() = ToProto(*finish, *request_);
  } else if (const auto* end = std::get_if<EndEvent>(&event)) {
    *message.mutable_end()->mutable_usage() = ToUsage(end->summary);
    *message.mutable_end()->mutable_timings() = ToTimings(end->summary);
    status_ = call_.Finish(nullptr, end->summary);
  } else {
    const auto& error = std::get<ErrorEvent>(event);
    status_ = call_.Finish(&error.error, error.summary);
    // Whoever does not read, or is gone, gets no more than what is being written.
    const bool unread = error.error.code == absl::StatusCode::kCancelled ||
                        error.error.code == absl::StatusCode::kResourceExhausted;
    while (unread && queue_.size() > (writing_ ? 1 : 0)) queue_.pop_back();
    Advance();
    return true;
  }
  Write(message);
  return pending_bytes_ <= router_->config().max_pending_bytes;
}

void StreamCall::Write(const v1::GenerateStreamResponse& message) {
  queue_.push_back(SerializeMessage(message));
  pending_bytes_ += static_cast<int64_t>(queue_.back().Length());
  Advance();
}

void StreamCall::Advance() {
  if (writing_) return;
  if (!queue_.empty()) {
    writing_ = true;
    if (queue_.size() == 1 && status_) return StartWriteAndFinish(&queue_.front(), {}, *status_);
    // What is followed at once by more leaves together with it.
    grpc::WriteOptions options;
    if (queue_.size() > 1) options.set_buffer_hint();
    StartWrite(&queue_.front(), options);
  } else if (status_) {
    Finish(*status_);
  }
}

void StreamCall::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mutex_);
  writing_ = false;
  pending_bytes_ -= static_cast<int64_t>(queue_.front().Length());
  queue_.pop_front();
  if (!ok) queue_.clear();  // the client is gone; OnCancel ends the request
  Advance();
}

void StreamCall::OnCancel() {
  // The ErrorEvent that this causes ends the call; when the request is over already, its status
  // does.
  router_->End(handle_, ClientGone());
}

}  // namespace bough::router
