#include "worker/link_messages.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/request_check.h"

namespace bough {
namespace {

constexpr int kMaxIdLength = 128;  // request_id, cache_salt: characters
constexpr int kMaxTraceparentLength = 256;
constexpr int kMaxPriority = 100;

static_assert(static_cast<int>(Finish::kEos) == link::FINISH_EOS);
static_assert(static_cast<int>(Finish::kStopToken) == link::FINISH_STOP_TOKEN);
static_assert(static_cast<int>(Finish::kLength) == link::FINISH_LENGTH);

SamplingParams ToSampling(const link::Sampling& s) {
  SamplingParams p;
  p.temperature = s.temperature();
  p.top_p = s.top_p();
  p.top_k = s.top_k();
  p.min_p = s.min_p();
  p.repetition_penalty = s.repetition_penalty();
  p.presence_penalty = s.presence_penalty();
  p.frequency_penalty = s.frequency_penalty();
  p.seed = s.seed();
  const int num_bias = std::min(s.bias_ids_size(), s.bias_values_size());
  for (int i = 0; i < num_bias; ++i) {
    p.logit_bias.emplace_back(s.bias_ids(i), s.bias_values(i));
  }
  p.stop_token_ids.assign(s.stop_token_ids().begin(), s.stop_token_ids().end());
  p.ignore_eos = s.ignore_eos();
  p.max_tokens = s.max_tokens();
  p.min_tokens = s.min_tokens();
  p.logprobs = s.logprobs();
  return p;
}

void CheckLength(const char* field, const std::string& value, int max,
                 std::vector<FieldViolation>* violations) {
  if (value.size() <= static_cast<size_t>(max)) return;
  violations->push_back(
      {field, absl::StrCat("must be at most ", max, " bytes, is ", value.size())});
}

void AddViolations(const std::vector<FieldViolation>& violations, link::Done* done) {
  for (const FieldViolation& v : violations) {
    done->add_violations(absl::StrCat(v.field, ": ", v.description));
  }
}

}  // namespace

std::vector<FieldViolation> ToRequest(uint64_t link_id, link::Submit* submit, absl::Time now,
                                      Request* request) {
  Request& r = *request;
  r.key = {link_id, submit->handle()};
  r.attempt = submit->attempt();
  r.request_id = std::move(*submit->mutable_request_id());
  r.traceparent = std::move(*submit->mutable_traceparent());
  r.prompt_ids.assign(submit->prompt_ids().begin(), submit->prompt_ids().end());
  r.sampling = ToSampling(submit->sampling());
  for (const link::ChoiceStart& choice : submit->choices()) {
    r.choices.push_back(
        {choice.index(), {choice.emitted_ids().begin(), choice.emitted_ids().end()}});
  }
  r.cache_salt = std::move(*submit->mutable_cache_salt());
  r.priority = submit->priority();
  r.expected_cached_tokens =
      std::clamp(submit->expected_cached_tokens(), 0, std::max(submit->prompt_ids_size() - 1, 0));
  r.deadline = submit->timeout_us() == 0 ? absl::InfiniteFuture()
                                         : now + absl::Microseconds(submit->timeout_us());

  std::vector<FieldViolation> violations;
  const link::Sampling& sampling = submit->sampling();
  if (sampling.bias_ids_size() != sampling.bias_values_size()) {
    violations.push_back({"sampling.logit_bias",
                          absl::StrCat("needs a value for each id, has ", sampling.bias_ids_size(),
                                       " ids and ", sampling.bias_values_size(), " values")});
  }
  CheckLength("request_id", r.request_id, kMaxIdLength, &violations);
  CheckLength("traceparent", r.traceparent, kMaxTraceparentLength, &violations);
  CheckLength("cache_salt", r.cache_salt, 4 * kMaxIdLength, &violations);  // UTF-8
  if (r.priority < -kMaxPriority || r.priority > kMaxPriority) {
    violations.push_back({"priority", absl::StrCat("must be in [", -kMaxPriority, ", ",
                                                   kMaxPriority, "], is ", r.priority)});
  }
  if (submit->timeout_us() < 0) {
    violations.push_back(
        {"timeout_us", absl::StrCat("must not be negative, is ", submit->timeout_us())});
  }
  return violations;
}

link::LinkResponse Refusal(const link::Submit& submit, absl::StatusCode code, std::string reason,
                           std::string message) {
  link::LinkResponse response;
  link::Done* done = response.mutable_done();
  done->set_handle(submit.handle());
  done->set_attempt(submit.attempt());
  done->set_code(static_cast<int>(code));
  done->set_reason(std::move(reason));
  done->set_message(std::move(message));
  return response;
}

link::LinkResponse InvalidSubmit(const link::Submit& submit,
                                 const std::vector<FieldViolation>& violations) {
  link::LinkResponse response =
      Refusal(submit, absl::StatusCode::kInvalidArgument, "INVALID", JoinViolations(violations));
  AddViolations(violations, response.mutable_done());
  return response;
}

link::LinkResponse ToMessage(const AckEvent& event) {
  link::LinkResponse response;
  link::Ack* ack = response.mutable_ack();
  ack->set_handle(event.key.handle);
  ack->set_attempt(event.attempt);
  ack->set_cached_tokens(event.cached_tokens);
  ack->set_shared_blocks(event.shared_blocks);
  ack->set_queue_seconds(absl::ToDoubleSeconds(event.queued));
  return response;
}

link::LinkResponse ToMessage(const DoneEvent& event) {
  link::LinkResponse response;
  link::Done* done = response.mutable_done();
  done->set_handle(event.key.handle);
  done->set_attempt(event.attempt);
  done->set_code(static_cast<int>(event.status.code()));
  done->set_message(std::string(event.status.message()));
  done->set_reason(event.reason);
  done->set_stage(event.stage);
  AddViolations(event.violations, done);
  return response;
}

link::LinkResponse ToMessage(const RankProgress& progress) {
  link::LinkResponse response;
  link::LoadProgress* p = response.mutable_load_progress();
  p->set_rank(progress.rank);
  p->set_phase(progress.phase);
  p->set_bytes_done(progress.bytes_done);
  p->set_bytes_total(progress.bytes_total);
  return response;
}

link::Load ToLoad(const LoadReport& load) {
  link::Load l;
  l.set_running(load.running);
  l.set_waiting(load.waiting);
  l.set_free_blocks(load.free_blocks);
  l.set_cached_blocks(load.cached_blocks);
  l.set_drain_seconds(load.drain_seconds);
  l.set_prefill_seconds_per_token(load.prefill_seconds_per_token);
  l.set_decode_step_seconds(load.decode_step_seconds);
  l.set_active_unique_blocks(load.active_unique_blocks);
  l.set_draining(load.draining);
  l.set_preemptions(load.preemptions);
  l.set_decode_seconds_per_block(load.decode_seconds_per_block);
  return l;
}

void ToRow(const TokenEvent& event, link::Row* row) {
  row->set_handle(event.key.handle);
  row->set_attempt(event.attempt);
  row->set_choice(event.choice);
  row->set_index(event.index);
  row->set_token(event.token);
  row->set_logprob(event.logprob);
  row->mutable_top_ids()->Add(event.top_ids.begin(), event.top_ids.end());
  row->mutable_top_logprobs()->Add(event.top_logprobs.begin(), event.top_logprobs.end());
  row->set_finish(static_cast<link::Finish>(event.finish));
}

}  // namespace bough
