#include "client/request_flags.h"

#include <fstream>
#include <iterator>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "common/utf8.h"

namespace bough::client {
namespace {

absl::Status ParseBias(std::string_view text, v1::SamplingOptions* sampling) {
  for (absl::string_view entry : absl::StrSplit(absl::string_view(text.data(), text.size()), ',')) {
    const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(entry, ':');
    int32_t id;
    float bias;
    if (!absl::SimpleAtoi(parts.first, &id) || !absl::SimpleAtof(parts.second, &bias)) {
      return absl::InvalidArgumentError(absl::StrCat("'", entry, "' is not TOKEN:BIAS"));
    }
    v1::LogitBias* added = sampling->add_logit_bias();
    added->set_token_id(id);
    added->set_bias(bias);
  }
  return absl::OkStatus();
}

std::string ReadAll(std::istream& in) {
  std::string text{std::istreambuf_iterator<char>(in), {}};
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

// A proto3 string must be UTF-8; the server could not even parse anything else.
absl::Status SetText(std::string text, v1::GenerateRequest* request) {
  for (size_t i = 0; i < text.size();) {
    const size_t bytes = Utf8CharBytes(std::string_view(text).substr(i));
    if (bytes == 0) {
      return absl::InvalidArgumentError(absl::StrCat("the prompt is not UTF-8 at byte ", i));
    }
    i += bytes;
  }
  request->set_text(std::move(text));
  return absl::OkStatus();
}

}  // namespace

absl::Status ParseIds(std::string_view text, std::vector<int32_t>* ids) {
  for (absl::string_view part : absl::StrSplit(absl::string_view(text.data(), text.size()),
                                               absl::ByAnyChar(", \n"), absl::SkipEmpty())) {
    int32_t id;
    if (!absl::SimpleAtoi(part, &id)) {
      return absl::InvalidArgumentError(absl::StrCat("'", part, "' is not a 32-bit integer"));
    }
    ids->push_back(id);
  }
  return absl::OkStatus();
}

void AddSamplingFlags(FlagSet& flags, v1::GenerateRequest* request) {
  v1::SamplingOptions* sampling = request->mutable_sampling();
  v1::StopOptions* stop = request->mutable_stop();
  v1::OutputOptions* output = request->mutable_output();
  flags.On<std::string>("model", "NAME", "model to ask for (the one that is served)",
                        [=](std::string v) { request->set_model(std::move(v)); });
  flags.On<int32_t>("n", "N", "answers; all share the prompt's KV blocks (1)",
                    [=](int32_t v) { sampling->set_n(v); });
  flags.On<int32_t>("best-of", "N", "draw N, return the n best by mean logprob; not streamed (n)",
                    [=](int32_t v) { sampling->set_best_of(v); });
  flags.On<float>("temperature", "F", "0 = greedy (1)",
                  [=](float v) { sampling->set_temperature(v); });
  flags.On<float>("top-p", "F", "nucleus mass, (0, 1] (1)",
                  [=](float v) { sampling->set_top_p(v); });
  flags.On<int32_t>("top-k", "N", "most probable tokens kept, 0 = all (0)",
                    [=](int32_t v) { sampling->set_top_k(v); });
  flags.On<float>("min-p", "F", "drop tokens below F times the most probable (0)",
                  [=](float v) { sampling->set_min_p(v); });
  flags.On<float>("repetition-penalty", "F", "for tokens of prompt and answer, (0, 10] (1)",
                  [=](float v) { sampling->set_repetition_penalty(v); });
  flags.On<float>("presence-penalty", "F", "once per token of the answer, [-2, 2] (0)",
                  [=](float v) { sampling->set_presence_penalty(v); });
  flags.On<float>("frequency-penalty", "F", "per occurrence in the answer, [-2, 2] (0)",
                  [=](float v) { sampling->set_frequency_penalty(v); });
  flags.AddRaw("logit-bias", "TOKEN:BIAS", "repeatable, or separated by commas",
               [=](std::string_view v) { return ParseBias(v, sampling); });
  flags.On<uint64_t>("seed", "N", "same seed, same answer (random)",
                     [=](uint64_t v) { sampling->set_seed(v); });
  flags.On<int32_t>("max-tokens", "N", "tokens per answer (what the server allows)",
                    [=](int32_t v) { stop->set_max_tokens(v); });
  flags.On<int32_t>("min-tokens", "N", "no end before N tokens (0)",
                    [=](int32_t v) { stop->set_min_tokens(v); });
  flags.On<std::string>("stop", "TEXT", "end at this text; repeatable",
                        [=](std::string v) { stop->add_stop_strings(std::move(v)); });
  flags.AddRaw("stop-token-ids", "IDS", "end at one of these tokens: 5,17",
               [=](std::string_view v) {
                 std::vector<int32_t> ids;
                 RETURN_IF_ERROR(ParseIds(v, &ids));
                 stop->mutable_stop_token_ids()->Add(ids.begin(), ids.end());
                 return absl::OkStatus();
               });
  flags.On<bool>("ignore-eos", "", "EOS does not end an answer",
                 [=](bool v) { stop->set_ignore_eos(v); });
  flags.On<bool>("include-stop-str-in-output", "", "keep the stop string in the text",
                 [=](bool v) { stop->set_include_stop_string(v); });
  flags.On<int32_t>("logprobs", "K", "logprob of each token, and of the K most probable",
                    [=](int32_t v) { output->set_logprobs(v); });
  flags.On<bool>("return-token-ids", "", "token ids beside the text (with --json)",
                 [=](bool v) { output->set_return_token_ids(v); });
  flags.On<std::string>("cache-salt", "TEXT", "share cached KV only with requests of this salt",
                        [=](std::string v) { request->set_cache_salt(std::move(v)); });
  flags.On<int32_t>("priority", "N", "higher is sooner, [-100, 100] (0)",
                    [=](int32_t v) { request->set_priority(v); });
  flags.On<std::string>("request-id", "ID", "name in logs and for cancelling (made by the server)",
                        [=](std::string v) { request->set_request_id(std::move(v)); });
}

void PromptFlags::AddFlags(FlagSet& flags) {
  flags.Add("prompt-file", "FILE", "read the prompt from FILE", &prompt_file);
  flags.AddRaw("token-ids", "IDS", "the prompt as token ids: 1,523,88", [this](std::string_view v) {
    has_token_ids = true;
    return ParseIds(v, &token_ids);
  });
}

absl::Status PromptFlags::Resolve(const std::vector<std::string>& positional, Io& io,
                                  v1::GenerateRequest* request) const {
  const int sources = static_cast<int>(positional.size()) + !prompt_file.empty() + has_token_ids;
  if (sources > 1) {
    return absl::InvalidArgumentError(
        "more than one prompt: give one argument (quoted), --prompt-file or --token-ids");
  }
  if (has_token_ids) {
    request->mutable_token_ids()->mutable_ids()->Add(token_ids.begin(), token_ids.end());
    return absl::OkStatus();
  }
  if (!prompt_file.empty()) {
    std::ifstream file(prompt_file, std::ios::binary);
    if (!file) return absl::NotFoundError("--prompt-file: cannot read " + prompt_file);
    return SetText(ReadAll(file), request);
  }
  if (positional.size() == 1 && positional[0] != "-") {
    return SetText(positional[0], request);
  }
  if (positional.empty() && io.in_tty) {
    return absl::InvalidArgumentError("no prompt: give an argument, --prompt-file or stdin");
  }
  return SetText(ReadAll(io.in), request);
}

}  // namespace bough::client
