#include "router/link_translation.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace bough::router {
namespace {

namespace pb = ::bough::group::v1;

// Hashes travel as 16 bytes each, (lo, hi), little endian.
absl::StatusOr<std::vector<BlockHash>> ReadHashes(const std::string& bytes) {
  static_assert(std::endian::native == std::endian::little && sizeof(BlockHash) == 16);
  if (bytes.size() % 16 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("hashes are 16 bytes each, got ", bytes.size(), " bytes"));
  }
  std::vector<BlockHash> hashes(bytes.size() / 16);
  if (!bytes.empty()) std::memcpy(hashes.data(), bytes.data(), bytes.size());
  return hashes;
}

GroupHello FromHello(const pb::Hello& m) {
  GroupHello out;
  out.group = m.group();
  out.epoch = m.epoch();
  out.ready = m.ready();
  out.model_key = m.model_key();
  out.device = m.device();
  out.tp_size = m.tp_size();
  out.ep_size = m.ep_size();
  out.block_size = m.block_size();
  out.total_blocks = m.total_blocks();
  out.limits.vocab_size = m.limits().vocab_size();
  out.limits.max_model_len = m.limits().max_model_len();
  out.limits.max_n = m.limits().max_n();
  out.limits.bos_token_id = m.limits().bos_token_id();
  out.limits.eos_token_id = m.limits().eos_token_id();
  out.architecture = m.architecture();
  out.num_local_experts = m.num_local_experts();
  out.num_experts_per_tok = m.num_experts_per_tok();
  return out;
}

GroupLoad FromLoad(const pb::Load& m) {
  GroupLoad out;
  out.running = m.running();
  out.waiting = m.waiting();
  out.free_blocks = m.free_blocks();
  out.cached_blocks = m.cached_blocks();
  out.drain_seconds = m.drain_seconds();
  out.prefill_seconds_per_token = m.prefill_seconds_per_token();
  out.decode_step_seconds = m.decode_step_seconds();
  out.decode_seconds_per_block = m.decode_seconds_per_block();
  out.active_unique_blocks = m.active_unique_blocks();
  out.draining = m.draining();
  out.preemptions = m.preemptions();
  out.epoch = m.epoch();
  out.cache_seq = m.cache_seq();
  out.cache_digest = m.cache_digest();
  out.submits = m.submits();
  return out;
}

absl::StatusOr<GroupEvent> FromDigests(const pb::BucketDigests& m) {
  if (m.digests_size() != kNumDigestBuckets) {
    return absl::InvalidArgumentError(
        absl::StrCat("digests: must be ", kNumDigestBuckets, ", are ", m.digests_size()));
  }
  return BucketDigests{m.epoch(), m.seq(), {m.digests().begin(), m.digests().end()}};
}

TokenFinish FromFinish(pb::Finish finish) {
  switch (finish) {
    case pb::FINISH_EOS:
      return TokenFinish::kEos;
    case pb::FINISH_STOP_TOKEN:
      return TokenFinish::kStopToken;
    case pb::FINISH_LENGTH:
      return TokenFinish::kLength;
    default:
      return TokenFinish::kNone;
  }
}

StepOutput FromStepOutput(const pb::StepOutput& m) {
  StepOutput out;
  out.rows.reserve(m.rows_size());
  for (const pb::Row& row : m.rows()) {
    out.rows.push_back({.handle = row.handle(),
                        .attempt = row.attempt(),
                        .choice = row.choice(),
                        .index = row.index(),
                        .token = row.token(),
                        .logprob = row.logprob(),
                        .top_ids = {row.top_ids().begin(), row.top_ids().end()},
                        .top_logprobs = {row.top_logprobs().begin(), row.top_logprobs().end()},
                        .finish = FromFinish(row.finish())});
  }
  return out;
}

Done FromDone(const pb::Done& m) {
  return {.handle = m.handle(),
          .attempt = m.attempt(),
          .code = static_cast<absl::StatusCode>(m.code()),
          .message = m.message(),
          .reason = m.reason(),
          .stage = m.stage(),
          .violations = {m.violations().begin(), m.violations().end()}};
}

void FillSampling(const SamplingParams& s, pb::Sampling* m) {
  m->set_temperature(s.temperature);
  m->set_top_p(s.top_p);
  m->set_top_k(s.top_k);
  m->set_min_p(s.min_p);
  m->set_repetition_penalty(s.repetition_penalty);
  m->set_presence_penalty(s.presence_penalty);
  m->set_frequency_penalty(s.frequency_penalty);
  m->set_seed(s.seed);
  for (const auto& [id, bias] : s.logit_bias) {
    m->add_bias_ids(id);
    m->add_bias_values(bias);
  }
  m->mutable_stop_token_ids()->Add(s.stop_token_ids.begin(), s.stop_token_ids.end());
  m->set_ignore_eos(s.ignore_eos);
  m->set_max_tokens(s.max_tokens);
  m->set_min_tokens(s.min_tokens);
  m->set_logprobs(s.logprobs);
}

void FillSubmit(const SubmitCommand& command, pb::Submit* m) {
  const Request& r = *command.request;
  m->set_handle(command.handle);
  m->set_group(command.group);
  m->set_epoch(command.epoch);
  m->set_attempt(command.attempt);
  m->set_request_id(r.id);
  m->set_traceparent(r.traceparent);
  m->mutable_prompt_ids()->Add(r.prompt_ids.begin(), r.prompt_ids.end());
  FillSampling(r.sampling, m->mutable_sampling());
  for (const ChoiceStart& choice : command.choices) {
    pb::ChoiceStart* c = m->add_choices();
    c->set_index(choice.index);
    c->mutable_emitted_ids()->Add(choice.emitted.begin(), choice.emitted.end());
  }
  m->set_cache_salt(r.cache_salt);
  m->set_priority(r.priority);
  if (command.timeout != absl::InfiniteDuration()) {
    // 0 means none on the wire, so a deadline that just passed is sent as 1 us.
    m->set_timeout_us(std::max<int64_t>(absl::ToInt64Microseconds(command.timeout), 1));
  }
  if (command.expected_wait_seconds) m->set_expected_wait_seconds(*command.expected_wait_seconds);
  m->set_expected_cached_tokens(command.expected_cached_tokens);
}

}  // namespace

group::v1::LinkRequest ToProto(const GroupCommand& command) {
  pb::LinkRequest out;
  if (const auto* submit = std::get_if<SubmitCommand>(&command)) {
    FillSubmit(*submit, out.mutable_submit());
  } else if (const auto* cancel = std::get_if<CancelCommand>(&command)) {
    out.mutable_cancel()->set_handle(cancel->handle);
    out.mutable_cancel()->set_choice(cancel->choice);
  } else if (const auto* sync = std::get_if<CacheSyncCommand>(&command)) {
    out.mutable_cache_sync()->set_number(sync->number);
    out.mutable_cache_sync()->set_epoch(sync->epoch);
    out.mutable_cache_sync()->set_seq(sync->seq);
  } else if (const auto* digests = std::get_if<DigestsCommand>(&command)) {
    out.mutable_digests()->set_epoch(digests->epoch);
  } else if (const auto* buckets = std::get_if<BucketsCommand>(&command)) {
    out.mutable_buckets()->set_epoch(buckets->epoch);
    out.mutable_buckets()->mutable_buckets()->assign(buckets->buckets.begin(),
                                                     buckets->buckets.end());
  } else {
    out.mutable_drain()->set_on(std::get<DrainCommand>(command).on);
  }
  return out;
}

absl::StatusOr<GroupEvent> FromProto(const group::v1::LinkResponse& response) {
  switch (response.message_case()) {
    case pb::LinkResponse::kHello:
      return FromHello(response.hello());
    case pb::LinkResponse::kLoadProgress: {
      const pb::LoadProgress& m = response.load_progress();
      return RankProgress{m.rank(), m.phase(), m.bytes_done(), m.bytes_total()};
    }
    case pb::LinkResponse::kCacheSyncReply: {
      const pb::CacheSyncReply& m = response.cache_sync_reply();
      return CacheSyncReply{m.number(), m.epoch(), m.resumed(), m.seq()};
    }
    case pb::LinkResponse::kBucketDigests:
      return FromDigests(response.bucket_digests());
    case pb::LinkResponse::kBuckets: {
      const pb::Buckets& m = response.buckets();
      ASSIGN_OR_RETURN(auto hashes, ReadHashes(m.hashes()));
      return BucketContents{
          m.epoch(), m.seq(), {m.buckets().begin(), m.buckets().end()}, std::move(hashes)};
    }
    case pb::LinkResponse::kCacheDelta: {
      const pb::CacheDelta& m = response.cache_delta();
      ASSIGN_OR_RETURN(auto stored, ReadHashes(m.stored()));
      ASSIGN_OR_RETURN(auto removed, ReadHashes(m.removed()));
      return CacheDelta{m.epoch(),          m.seq(),     std::move(stored),
                        std::move(removed), m.cleared(), m.digest()};
    }
    case pb::LinkResponse::kLoad:
      return FromLoad(response.load());
    case pb::LinkResponse::kAck: {
      const pb::Ack& m = response.ack();
      return Ack{m.handle(), m.attempt(), m.cached_tokens(), m.shared_blocks(), m.queue_seconds()};
    }
    case pb::LinkResponse::kRefused: {
      const pb::Refused& m = response.refused();
      return Refused{m.handle(), m.attempt(), FromLoad(m.load())};
    }
    case pb::LinkResponse::kStepOutput:
      return FromStepOutput(response.step_output());
    case pb::LinkResponse::kDone:
      return FromDone(response.done());
    default:
      return absl::InvalidArgumentError("the group sent a message that this router does not know");
  }
}

}  // namespace bough::router
