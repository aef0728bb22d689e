#include "router/parse_request.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "router/api_errors.h"
#include "router/unknown_fields.h"

namespace bough::router {
namespace {

using Violations = std::vector<FieldViolation>;

void CheckRange(const std::string& field, int64_t value, int64_t low, int64_t high,
                Violations& out) {
  if (value >= low && value <= high) return;
  out.push_back({field, absl::StrCat("must be in [", low, ", ", high, "], is ", value)});
}

void CheckSalt(const std::string& salt, Violations& out) {
  const auto chars =
      std::count_if(salt.begin(), salt.end(), [](char c) { return (c & 0xC0) != 0x80; });  // UTF-8
  if (chars <= kMaxCacheSaltChars) return;
  out.push_back({"cache_salt",
                 absl::StrCat("must be at most ", kMaxCacheSaltChars, " characters, is ", chars)});
}

std::vector<int32_t> EncodeText(const std::string& text, const Tokenizer& tokenizer,
                                Violations& out) {
  if (text.empty()) {
    out.push_back({"text", "must not be empty"});
    return {};
  }
  std::vector<int32_t> ids = tokenizer.Encode(text);
  ids.insert(ids.begin(), tokenizer.bos_id());
  return ids;
}

std::vector<int32_t> EncodeChat(const v1::Chat& chat, const Tokenizer& tokenizer, Violations& out) {
  if (chat.messages().empty()) out.push_back({"chat.messages", "must not be empty"});
  std::vector<ChatTurn> turns;
  for (int i = 0; i < chat.messages_size(); ++i) {
    const v1::ChatMessage& message = chat.messages(i);
    const std::string field = absl::StrCat("chat.messages[", i, "]");
    if (message.content().empty()) out.push_back({field + ".content", "must not be empty"});
    if (message.role() < v1::ROLE_SYSTEM || message.role() > v1::ROLE_ASSISTANT) {
      out.push_back({field + ".role", absl::StrCat("must be system, user or assistant, is ",
                                                   static_cast<int>(message.role()))});
      continue;
    }
    turns.push_back({message.role() == v1::ROLE_SYSTEM      ? ChatTurn::Role::kSystem
                     : message.role() == v1::ROLE_ASSISTANT ? ChatTurn::Role::kAssistant
                                                            : ChatTurn::Role::kUser,
                     message.content()});
  }
  if (!out.empty()) return {};
  absl::StatusOr<std::vector<int32_t>> ids = tokenizer.EncodeChat(turns);
  if (ids.ok()) return *std::move(ids);
  // "chat.messages[2]: must be a user turn"
  const std::string text(ids.status().message());
  const size_t colon = text.find(": ");
  out.push_back(colon == std::string::npos
                    ? FieldViolation{"chat.messages", text}
                    : FieldViolation{text.substr(0, colon), text.substr(colon + 2)});
  return {};
}

std::vector<int32_t> PromptIds(const v1::GenerateRequest& m, const Tokenizer& tokenizer,
                               Violations& out) {
  switch (m.prompt_case()) {
    case v1::GenerateRequest::kText:
      return EncodeText(m.text(), tokenizer, out);
    case v1::GenerateRequest::kChat:
      return EncodeChat(m.chat(), tokenizer, out);
    case v1::GenerateRequest::kTokenIds:
      if (m.token_ids().ids().empty()) out.push_back({"token_ids.ids", "must not be empty"});
      return {m.token_ids().ids().begin(), m.token_ids().ids().end()};
    default:
      out.push_back({"prompt", "must be set: one of text, chat or token_ids"});
      return {};
  }
}

void ParseSampling(const v1::SamplingOptions& m, uint64_t random, SamplingParams& s) {
  if (m.has_temperature()) s.temperature = m.temperature();
  if (m.has_top_p()) s.top_p = m.top_p();
  if (m.has_top_k()) s.top_k = m.top_k();
  if (m.has_min_p()) s.min_p = m.min_p();
  if (m.has_repetition_penalty()) s.repetition_penalty = m.repetition_penalty();
  if (m.has_presence_penalty()) s.presence_penalty = m.presence_penalty();
  if (m.has_frequency_penalty()) s.frequency_penalty = m.frequency_penalty();
  for (const v1::LogitBias& bias : m.logit_bias()) {
    s.logit_bias.emplace_back(bias.token_id(), bias.bias());
  }
  s.seed = m.has_seed() ? m.seed() : random;
}

void ParseStop(const v1::StopOptions& m, const ServedModel& model, Request& r, Violations& out) {
  SamplingParams& s = r.sampling;
  const int context_left = model.limits.max_model_len - static_cast<int>(r.prompt_ids.size());
  s.max_tokens = m.has_max_tokens() ? m.max_tokens()
                                    : std::max(std::min(model.default_max_tokens, context_left), 1);
  if (m.has_min_tokens()) s.min_tokens = m.min_tokens();
  s.stop_token_ids = {m.stop_token_ids().begin(), m.stop_token_ids().end()};
  s.ignore_eos = m.ignore_eos();
  r.include_stop_string = m.include_stop_string();
  r.stop_strings = {m.stop_strings().begin(), m.stop_strings().end()};
  if (r.stop_strings.size() > kMaxStopStrings) {
    out.push_back({"stop.stop_strings", absl::StrCat("must be at most ", kMaxStopStrings,
                                                     " strings, are ", r.stop_strings.size())});
  }
  for (size_t i = 0; i < r.stop_strings.size(); ++i) {
    const size_t bytes = r.stop_strings[i].size();
    if (bytes >= 1 && bytes <= kMaxStopStringBytes) continue;
    out.push_back({absl::StrCat("stop.stop_strings[", i, "]"),
                   absl::StrCat("must be 1 to ", kMaxStopStringBytes, " bytes, is ", bytes)});
  }
  if (r.include_stop_string && r.stop_strings.empty()) {
    out.push_back({"stop.include_stop_string", "must not be set when stop_strings is empty"});
  }
}

void ParseCounts(const v1::SamplingOptions& m, bool stream, const ModelLimits& limits, Request& r,
                 Violations& out) {
  r.n = m.has_n() ? m.n() : 1;
  r.best_of = m.has_best_of() ? m.best_of() : r.n;
  // n out of its range is ValidateRequest's to report, by way of best_of's default.
  if (!m.has_best_of()) return;
  CheckRange("sampling.n", r.n, 1, limits.max_n, out);
  if (r.n >= 1 && r.n <= limits.max_n) {
    CheckRange("sampling.best_of", r.best_of, r.n, limits.max_n, out);
  }
  if (stream && r.best_of > r.n) {
    out.push_back({"sampling.best_of",
                   absl::StrCat("must equal n (", r.n, ") in GenerateStream, is ", r.best_of)});
  }
}

void ParseOutput(const v1::OutputOptions& m, Request& r, Violations& out) {
  if (m.has_logprobs()) {
    // -1 is how SamplingParams says none; a client says it by leaving the field unset.
    if (m.logprobs() == -1) out.push_back({"output.logprobs", "must not be negative, is -1"});
    r.sampling.logprobs = m.logprobs();
    r.return_logprobs = true;
  } else if (r.best_of > r.n) {
    r.sampling.logprobs = 0;
  }
  r.return_token_ids = m.return_token_ids();
  r.return_prompt = m.return_prompt();
  r.explain_route = m.explain_route();
}

}  // namespace

std::vector<FieldViolation> CheckRequestId(const std::string& field, const std::string& id) {
  if (id.empty() || id.size() > kMaxRequestIdChars) {
    return {
        {field, absl::StrCat("must be 1 to ", kMaxRequestIdChars, " characters, is ", id.size())}};
  }
  if (!std::all_of(id.begin(), id.end(), [](char c) { return absl::ascii_isgraph(c); })) {
    return {{field, "must be printable ASCII without spaces"}};
  }
  return {};
}

std::variant<std::shared_ptr<Request>, ApiError> ParseRequest(const v1::GenerateRequest& m,
                                                              bool stream, const ServedModel& model,
                                                              const Tokenizer& tokenizer,
                                                              const std::string& fallback_id,
                                                              uint64_t random) {
  if (Violations unknown = FindUnknownFields(m); !unknown.empty()) {
    return InvalidRequest(std::move(unknown));
  }
  if (!m.model().empty() && m.model() != model.name) return UnknownModel(m.model(), model.name);

  Violations found;
  auto request = std::make_shared<Request>();
  Request& r = *request;
  r.id = m.has_request_id() ? m.request_id() : fallback_id;
  if (m.has_request_id()) found = CheckRequestId("request_id", r.id);
  CheckSalt(m.cache_salt(), found);
  r.cache_salt = m.cache_salt();
  CheckRange("priority", m.priority(), -kMaxPriority, kMaxPriority, found);
  r.priority = m.priority();

  Violations prompt;
  r.prompt_ids = PromptIds(m, tokenizer, prompt);
  // A chat's answer begins with the space that SentencePiece puts before any text.
  r.strip_leading_space = m.has_chat();
  ParseSampling(m.sampling(), random, r.sampling);
  ParseStop(m.stop(), model, r, found);
  ParseCounts(m.sampling(), stream, model.limits, r, found);
  ParseOutput(m.output(), r, found);

  // Of the numbers; where the prompt is bad in itself it has been said what is wrong with it.
  const bool prompt_ok = prompt.empty();
  const bool counts_ok = !m.sampling().has_best_of();
  for (FieldViolation& v :
       ValidateRequest(prompt_ok ? r.prompt_ids : std::vector<int32_t>{tokenizer.bos_id()},
                       r.sampling, counts_ok ? r.n : 1, model.limits)) {
    prompt.push_back(std::move(v));
  }
  prompt.insert(prompt.end(), std::make_move_iterator(found.begin()),
                std::make_move_iterator(found.end()));
  if (!prompt.empty()) return InvalidRequest(std::move(prompt));
  return request;
}

std::variant<std::vector<int32_t>, ApiError> ParsePrompt(const v1::TokenizeRequest& m,
                                                         const ServedModel& model,
                                                         const Tokenizer& tokenizer) {
  if (Violations unknown = FindUnknownFields(m); !unknown.empty()) {
    return InvalidRequest(std::move(unknown));
  }
  if (!m.model().empty() && m.model() != model.name) return UnknownModel(m.model(), model.name);
  Violations found;
  std::vector<int32_t> ids;
  if (m.has_text()) {
    ids = EncodeText(m.text(), tokenizer, found);
  } else if (m.has_chat()) {
    ids = EncodeChat(m.chat(), tokenizer, found);
  } else {
    found.push_back({"prompt", "must be set: one of text or chat"});
  }
  if (!found.empty()) return InvalidRequest(std::move(found));
  return ids;
}

}  // namespace bough::router
