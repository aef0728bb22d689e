#include "worker/link_stream.h"

#include <utility>

#include "common/log.h"

namespace bough {

LinkStream::LinkStream(uint64_t id, grpc::CallbackServerContext* context, LinkHandler* handler)
    : id_(id), context_(context), handler_(handler) {}

void LinkStream::Start() { StartRead(&request_); }

void LinkStream::Send(group::v1::LinkResponse message) {
  Next next = Next::kNothing;
  bool overflow = false;
  {
    absl::MutexLock lock(&mu_);
    if (closing_) return;
    queued_bytes_ += message.ByteSizeLong();
    overflow = queued_bytes_ > kMaxQueuedBytes;
    if (overflow) {
      queue_.clear();
      closing_ = grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the router does not read");
    } else {
      queue_.push_back(std::move(message));
    }
    next = Advance();
  }
  if (overflow) {
    LogWarning("router cut off: it does not read", {{"link", id_}, {"bytes", kMaxQueuedBytes}});
    // The write in flight would wait for the router for ever.
    context_->TryCancel();
  }
  Do(next);
}

bool LinkStream::Writable() {
  absl::MutexLock lock(&mu_);
  // More than that is queued only behind a write in flight, whose end will tell.
  if (queued_bytes_ < kWritableBytes) return true;
  tell_writable_ = true;
  return false;
}

void LinkStream::Close(grpc::Status status) {
  Next next = Next::kNothing;
  {
    absl::MutexLock lock(&mu_);
    if (closing_) return;
    closing_ = std::move(status);
    next = Advance();
  }
  Do(next);
}

LinkStream::Next LinkStream::Advance() {
  if (writing_ || finished_) return Next::kNothing;
  if (!queue_.empty()) {
    current_ = std::move(queue_.front());
    queue_.pop_front();
    queued_bytes_ -= current_.ByteSizeLong();
    writing_ = true;
    return Next::kWrite;
  }
  if (!closing_) return Next::kNothing;
  finished_ = true;
  final_status_ = *closing_;
  return Next::kFinish;
}

void LinkStream::Do(Next next) {
  if (next == Next::kWrite) StartWrite(&current_);
  if (next == Next::kFinish) Finish(final_status_);
}

void LinkStream::OnReadDone(bool ok) {
  if (ok) {
    const grpc::Status status = handler_->OnRequest(id_, &request_);
    if (status.ok()) return StartRead(&request_);
    handler_->OnClosed(id_);
    return Close(status);
  }
  // The router is gone, or has said its last word: nobody reads what is still queued.
  handler_->OnClosed(id_);
  Next next = Next::kNothing;
  {
    absl::MutexLock lock(&mu_);
    queue_.clear();
    if (!closing_) closing_ = grpc::Status::OK;
    next = Advance();
  }
  Do(next);
}

void LinkStream::OnWriteDone(bool ok) {
  Next next = Next::kNothing;
  bool writable = false;
  {
    absl::MutexLock lock(&mu_);
    writing_ = false;
    if (!ok) {
      queue_.clear();
      if (!closing_) closing_ = grpc::Status(grpc::StatusCode::UNAVAILABLE, "write failed");
    }
    next = Advance();
    writable = ok && tell_writable_ && queued_bytes_ < kWritableBytes;
    if (writable) tell_writable_ = false;
  }
  Do(next);
  if (writable) handler_->OnWritable(id_);
}

void LinkStream::OnDone() { delete this; }

}  // namespace bough
