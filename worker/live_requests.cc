#include "worker/live_requests.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "worker/request_check.h"

namespace bough {
namespace {

DoneEvent MakeDone(const Request& request, absl::Status status, std::string reason) {
  DoneEvent done;
  done.key = request.key;
  done.attempt = request.attempt;
  done.request_id = request.request_id;
  done.traceparent = request.traceparent;
  done.prompt_tokens = static_cast<int32_t>(request.prompt_ids.size());
  done.status = std::move(status);
  done.reason = std::move(reason);
  return done;
}

// How long each stage took, for a request that ends at `end`.
void FillTimings(const LiveRequest& live, absl::Time end, DoneEvent* done) {
  end = std::max(end, live.submitted);
  const absl::Time scheduled = std::min(live.first_scheduled, end);
  const absl::Time first_token = std::min(live.first_token, end);
  done->queue_time = scheduled - live.submitted;
  done->prefill_time = first_token - scheduled;
  done->decode_time = end - first_token;
}

const char* StageOf(const LiveRequest& live) {
  if (!live.was_admitted) return "queue";
  return live.first_token == absl::InfiniteFuture() ? "prefill" : "decode";
}

}  // namespace

BlockHash LiveRequests::RootOf(const Request& request) const {
  if (config_.enable_prefix_caching) return RootHash(config_.model_key, request.cache_salt);
  // A root of its own: shared by the request's choices and by nobody else.
  return RootHash(config_.model_key, absl::StrCat("request ", num_arrivals_));
}

void LiveRequests::Submit(Request request, absl::Time submitted, absl::Time now) {
  const absl::Duration queue_time = std::max(now - submitted, absl::ZeroDuration());
  if (draining_) {
    return Refuse(request, queue_time, absl::UnavailableError("the group is draining"), "DRAINING");
  }
  std::vector<FieldViolation> bad = CheckRequest(request, config_.limits, config_.num_blocks);
  if (by_key_.contains(request.key)) {
    bad.push_back({"handle", absl::StrFormat("must not be in use, %d is", request.key.handle)});
  }
  if (!bad.empty()) {
    auto status = absl::InvalidArgumentError(JoinViolations(bad));
    return Refuse(request, queue_time, std::move(status), "INVALID", std::move(bad));
  }
  if (const int num_waiting = scheduler_->num_waiting_requests();
      num_waiting >= config_.max_waiting) {
    auto status = absl::ResourceExhaustedError(
        absl::StrFormat("%d requests wait, the limit is %d", num_waiting, config_.max_waiting));
    return Refuse(request, queue_time, std::move(status), "QUEUE_FULL");
  }
  const BlockHash root = RootOf(request);
  const uint64_t arrival = num_arrivals_++;
  auto live = std::make_unique<LiveRequest>(std::move(request), root, arrival, submitted);
  by_key_[live->request.key] = live.get();
  scheduler_->Add(live.get());
  live_[arrival] = std::move(live);
}

void LiveRequests::Refuse(const Request& request, absl::Duration queue_time, absl::Status status,
                          std::string reason, std::vector<FieldViolation> violations) {
  DoneEvent done = MakeDone(request, std::move(status), std::move(reason));
  done.violations = std::move(violations);
  done.queue_time = queue_time;
  dones_.push_back(std::move(done));
}

void LiveRequests::Cancel(const RequestKey& key, int32_t choice, absl::Time now) {
  const auto it = by_key_.find(key);
  if (it == by_key_.end()) return;
  LiveRequest* request = it->second;
  if (choice < 0) return End(request, now, absl::CancelledError("cancelled"), "CANCELLED");
  const auto seq = std::find_if(request->sequences.begin(), request->sequences.end(),
                                [choice](const Sequence& s) {
                                  return s.choice == choice && s.state != SequenceState::kFinished;
                                });
  if (seq != request->sequences.end()) FinishChoice(&*seq, now);
}

void LiveRequests::CancelLink(uint64_t link, absl::Time now) {
  std::vector<LiveRequest*> gone;
  for (const auto& [arrival, request] : live_) {
    if (request->request.key.link == link) gone.push_back(request.get());
  }
  for (LiveRequest* request : gone) {
    End(request, now, absl::CancelledError("the router's stream is gone"), "CANCELLED");
  }
}

void LiveRequests::ExpireDeadlines(absl::Time now) {
  std::vector<LiveRequest*> expired;
  for (const auto& [arrival, request] : live_) {
    if (request->request.deadline <= now) expired.push_back(request.get());
  }
  for (LiveRequest* request : expired) {
    const char* stage = StageOf(*request);
    End(request, now, absl::DeadlineExceededError(absl::StrCat("deadline passed in ", stage)),
        "DEADLINE", stage);
  }
}

Sequence* LiveRequests::Find(const SequenceId& id) const {
  const auto it = live_.find(id.arrival);
  if (it == live_.end()) return nullptr;
  Sequence* seq = &it->second->sequences[id.ordinal];
  return seq->state == SequenceState::kFinished ? nullptr : seq;
}

void LiveRequests::FinishChoice(Sequence* seq, absl::Time now) {
  scheduler_->Finish(seq);
  if (--seq->request->num_unfinished == 0) End(seq->request, now, absl::OkStatus(), "");
}

void LiveRequests::End(LiveRequest* request, absl::Time now, absl::Status status,
                       std::string reason, std::string stage) {
  for (Sequence& seq : request->sequences) {
    if (seq.state != SequenceState::kFinished) scheduler_->Finish(&seq);
  }
  DoneEvent done = MakeDone(request->request, std::move(status), std::move(reason));
  done.stage = std::move(stage);
  done.cached_tokens = request->cached_tokens;
  done.generated_tokens = request->generated_tokens;
  FillTimings(*request, now, &done);
  dones_.push_back(std::move(done));
  by_key_.erase(request->request.key);
  live_.erase(request->arrival);
}

std::vector<DoneEvent> LiveRequests::TakeDones() { return std::exchange(dones_, {}); }

}  // namespace bough
