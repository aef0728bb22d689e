#include "router/unary_call.h"

#include <utility>

#include "router/answer.h"
#include "router/api_errors.h"
#include "router/api_translation.h"

namespace bough::router {

UnaryCall::UnaryCall(Router* router, grpc::CallbackServerContext* context,
                     const grpc::ByteBuffer& bytes, grpc::ByteBuffer* response)
    : router_(router), call_(router, context), response_(response) {
  if (const std::optional<ApiError> error = Begin(bytes)) {
    router_->metrics().CountRejected(error->reason);
    Finish(call_.Finish(&*error, {}));
  }
}

std::optional<ApiError> UnaryCall::Begin(const grpc::ByteBuffer& bytes) {
  v1::GenerateRequest message;
  if (auto error = ParseMessage(bytes, router_->config().max_request_bytes, &message)) {
    return error;
  }
  auto read = call_.Read(message, /*stream=*/false);
  if (auto* error = std::get_if<ApiError>(&read)) return std::move(*error);
  request_ = std::get<std::shared_ptr<Request>>(std::move(read));
  choices_.resize(request_->best_of);
  mean_logprobs_.resize(request_->best_of);
  return router_->Start(
      request_,
      [this](const ClientEvent& event) {
        OnEvent(event);
        return true;
      },
      &handle_);
}

void UnaryCall::OnEvent(const ClientEvent& event) {
  if (const auto* start = std::get_if<StartEvent>(&event)) {
    AddRoute(start->route, message_.mutable_route());
  } else if (const auto* delta = std::get_if<DeltaEvent>(&event)) {
    v1::StreamDelta m = ToProto(*delta);
    v1::Choice& choice = choices_[delta->choice];
    choice.mutable_text()->append(m.text());
    choice.mutable_token_ids()->MergeFrom(m.token_ids());
    choice.mutable_logprobs()->MergeFrom(m.logprobs());
  } else if (const auto* finish = std::get_if<FinishEvent>(&event)) {
    const v1::StreamFinish m = ToProto(*finish, *request_);
    v1::Choice& choice = choices_[finish->choice];
    choice.set_finish_reason(m.finish_reason());
    if (m.has_stop_string()) choice.set_stop_string(m.stop_string());
    if (m.has_stop_token_id()) choice.set_stop_token_id(m.stop_token_id());
    mean_logprobs_[finish->choice] = finish->mean_logprob;
  } else if (const auto* end = std::get_if<EndEvent>(&event)) {
    OnEnd(*end);
  } else {
    const auto& error = std::get<ErrorEvent>(event);
    Finish(call_.Finish(&error.error, error.summary));
  }
}

void UnaryCall::OnEnd(const EndEvent& end) {
  const bool ranked = request_->best_of > request_->n;
  message_.set_request_id(request_->id);
  message_.set_model(router_->config().served_model_name);
  message_.set_group(end.summary.group);
  *message_.mutable_usage() = ToUsage(end.summary);
  *message_.mutable_timings() = ToTimings(end.summary);
  if (request_->return_prompt) {
    message_.mutable_prompt_token_ids()->Add(request_->prompt_ids.begin(),
                                             request_->prompt_ids.end());
  }
  std::vector<int> order(request_->n);
  for (int i = 0; i < request_->n; ++i) order[i] = i;
  if (ranked) order = RankChoices(mean_logprobs_, request_->n);
  for (int i = 0; i < request_->n; ++i) {
    v1::Choice* choice = message_.add_choices();
    *choice = std::move(choices_[order[i]]);
    choice->set_index(i);
    if (ranked || request_->return_logprobs) choice->set_mean_logprob(mean_logprobs_[order[i]]);
  }
  *response_ = SerializeMessage(message_);
  Finish(call_.Finish(nullptr, end.summary));
}

void UnaryCall::OnCancel() { router_->End(handle_, ClientGone()); }

}  // namespace bough::router
