#include "router/api_translation.h"

#include <algorithm>

#include "router/parse_request.h"

namespace bough::router {
namespace {

v1::FinishReason ToReason(FinishReason reason) {
  return reason == FinishReason::kLength ? v1::FINISH_REASON_LENGTH : v1::FINISH_REASON_STOP;
}

v1::GroupState ToState(const GroupState& group) {
  switch (group.phase) {
    case GroupState::Phase::kConnecting:
      return v1::GROUP_STATE_CONNECTING;
    case GroupState::Phase::kLoading:
      return v1::GROUP_STATE_LOADING;
    default:
      return group.draining() ? v1::GROUP_STATE_DRAINING : v1::GROUP_STATE_READY;
  }
}

}  // namespace

void AddRoute(const std::vector<RouteTerm>& route,
              google::protobuf::RepeatedPtrField<v1::RouteCandidate>* out) {
  for (const RouteTerm& term : route) {
    v1::RouteCandidate* c = out->Add();
    const CostTerms& t = term.candidate.terms;
    c->set_group(term.group);
    c->set_accepting(term.candidate.accepting);
    c->set_chosen(term.chosen);
    c->set_matched_tokens(term.candidate.matched_tokens);
    c->set_total_seconds(t.total());
    c->set_why_not(term.why_not);
    c->set_in_sync(term.in_sync);
    auto& terms = *c->mutable_terms();
    terms["wait"] = t.wait;
    terms["prefill"] = t.prefill;
    terms["externality"] = t.externality;
    terms["decode"] = t.decode;
    terms["eviction"] = t.eviction;
    terms["next_turn"] = t.next_turn;
  }
}

v1::StreamStart ToProto(const StartEvent& event, const Request& request, const std::string& model) {
  v1::StreamStart m;
  m.set_request_id(request.id);
  m.set_model(model);
  m.set_prompt_tokens(event.prompt_tokens);
  m.set_cached_prompt_tokens(event.cached_prompt_tokens);
  m.set_group(event.group);
  if (request.return_prompt) {
    m.mutable_prompt_token_ids()->Add(request.prompt_ids.begin(), request.prompt_ids.end());
  }
  AddRoute(event.route, m.mutable_route());
  return m;
}

v1::StreamDelta ToProto(const DeltaEvent& event) {
  v1::StreamDelta m;
  m.set_index(event.choice);
  m.set_text(event.text);
  m.mutable_token_ids()->Add(event.token_ids.begin(), event.token_ids.end());
  for (const TokenLogprob& t : event.logprobs) {
    v1::TokenLogprob* out = m.add_logprobs();
    out->set_token_id(t.token);
    out->set_logprob(t.logprob);
    for (size_t i = 0; i < std::min(t.top_ids.size(), t.top_logprobs.size()); ++i) {
      v1::TopLogprob* top = out->add_top();
      top->set_token_id(t.top_ids[i]);
      top->set_logprob(t.top_logprobs[i]);
    }
  }
  return m;
}

v1::StreamFinish ToProto(const FinishEvent& event, const Request& request) {
  v1::StreamFinish m;
  m.set_index(event.choice);
  m.set_finish_reason(ToReason(event.reason));
  if (event.stop_string >= 0) m.set_stop_string(request.stop_strings[event.stop_string]);
  if (event.stop_token_id >= 0) m.set_stop_token_id(event.stop_token_id);
  return m;
}

v1::Usage ToUsage(const RequestSummary& s) {
  v1::Usage m;
  m.set_prompt_tokens(s.prompt_tokens);
  m.set_completion_tokens(static_cast<int32_t>(s.completion_tokens));
  m.set_total_tokens(static_cast<int32_t>(s.prompt_tokens + s.completion_tokens));
  m.set_cached_prompt_tokens(s.cached_prompt_tokens);
  m.set_shared_kv_blocks(s.shared_kv_blocks);
  m.set_block_size(kBlockSize);
  return m;
}

v1::Timings ToTimings(const RequestSummary& s) {
  v1::Timings m;
  m.set_queue_seconds(std::max(s.queue_seconds, 0.0));
  m.set_ttft_seconds(std::max(s.ttft_seconds, 0.0));
  m.set_e2e_seconds(std::max(s.e2e_seconds, 0.0));
  m.set_mean_itl_seconds(s.mean_itl_seconds);
  return m;
}

v1::Group ToProto(const GroupState& g, int cached_blocks, absl::Time now) {
  v1::Group m;
  m.set_name(g.address.name);
  m.set_address(g.address.address);
  m.set_state(ToState(g));
  m.set_epoch(g.hello.epoch);
  m.set_tp_size(g.hello.tp_size);
  m.set_ep_size(g.hello.ep_size);
  m.set_device(g.hello.device);
  m.set_requests_running(g.load.running);
  m.set_requests_waiting(g.load.waiting);
  m.set_total_blocks(g.hello.total_blocks);
  m.set_free_blocks(g.load.free_blocks);
  m.set_cached_blocks(cached_blocks);
  m.set_drain_seconds(g.load.drain_seconds);
  m.set_prompt_tokens(g.prompt_tokens);
  m.set_cached_prompt_tokens(g.cached_prompt_tokens);
  m.set_generated_tokens(g.generated_tokens);
  if (g.last_load != absl::InfinitePast()) {
    m.set_load_age_seconds(absl::ToDoubleSeconds(now - g.last_load));
  }
  m.set_last_error(g.last_error);
  m.set_preemptions(g.load.preemptions);
  return m;
}

v1::Model ToModel(const GroupHello& hello, const RouterConfig& config, int ready_groups) {
  v1::Model m;
  m.set_name(config.served_model_name);
  m.set_architecture(hello.architecture);
  m.set_vocab_size(hello.limits.vocab_size);
  m.set_max_model_len(hello.limits.max_model_len);
  m.set_max_n(hello.limits.max_n);
  m.set_max_logprobs(hello.limits.max_logprobs);
  m.set_max_stop_strings(kMaxStopStrings);
  m.set_max_stop_token_ids(hello.limits.max_stop_token_ids);
  m.set_max_logit_bias(hello.limits.max_logit_bias);
  m.set_max_request_bytes(config.max_request_bytes);
  m.set_default_max_tokens(config.default_max_tokens);
  m.set_block_size(kBlockSize);
  m.set_bos_token_id(hello.limits.bos_token_id);
  m.set_eos_token_id(hello.limits.eos_token_id);
  m.set_num_local_experts(hello.num_local_experts);
  m.set_num_experts_per_tok(hello.num_experts_per_tok);
  for (const char* capability :
       {"chat", "token_ids", "n", "best_of", "seed", "logit_bias", "penalties", "stop_strings",
        "stop_token_ids", "min_tokens", "logprobs", "return_token_ids", "return_prompt",
        "explain_route", "cache_salt", "priority"}) {
    m.add_capabilities(capability);
  }
  m.set_ready_groups(ready_groups);
  return m;
}

}  // namespace bough::router
