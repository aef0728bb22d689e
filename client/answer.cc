#include "client/answer.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "google/protobuf/util/json_util.h"

namespace bough::client {
namespace {

v1::Choice* ChoiceAt(int index, v1::GenerateResponse* answer) {
  while (answer->choices_size() <= index) {
    answer->add_choices()->set_index(answer->choices_size() - 1);
  }
  return answer->mutable_choices(index);
}

}  // namespace

void Fold(const v1::GenerateStreamResponse& event, v1::GenerateResponse* answer) {
  if (event.has_start()) {
    const v1::StreamStart& start = event.start();
    answer->set_request_id(start.request_id());
    answer->set_model(start.model());
    answer->set_group(start.group());
    answer->mutable_usage()->set_prompt_tokens(start.prompt_tokens());
    answer->mutable_usage()->set_cached_prompt_tokens(start.cached_prompt_tokens());
    answer->mutable_prompt_token_ids()->MergeFrom(start.prompt_token_ids());
    answer->mutable_route()->MergeFrom(start.route());
  } else if (event.has_delta()) {
    v1::Choice* choice = ChoiceAt(event.delta().index(), answer);
    choice->mutable_text()->append(event.delta().text());
    choice->mutable_token_ids()->MergeFrom(event.delta().token_ids());
    choice->mutable_logprobs()->MergeFrom(event.delta().logprobs());
  } else if (event.has_finish()) {
    const v1::StreamFinish& finish = event.finish();
    v1::Choice* choice = ChoiceAt(finish.index(), answer);
    choice->set_finish_reason(finish.finish_reason());
    if (finish.has_stop_string()) choice->set_stop_string(finish.stop_string());
    if (finish.has_stop_token_id()) choice->set_stop_token_id(finish.stop_token_id());
  } else if (event.has_end()) {
    *answer->mutable_usage() = event.end().usage();
    *answer->mutable_timings() = event.end().timings();
  }
}

std::string SummaryLine(const v1::GenerateResponse& answer) {
  const v1::Usage& usage = answer.usage();
  const double seconds = answer.timings().e2e_seconds();
  return absl::StrFormat(
      "group=%s prompt_tokens=%d cached_tokens=%d completion_tokens=%d shared_blocks=%d "
      "ttft_ms=%.1f tokens_per_s=%.1f",
      answer.group(), usage.prompt_tokens(), usage.cached_prompt_tokens(),
      usage.completion_tokens(), usage.shared_kv_blocks(), answer.timings().ttft_seconds() * 1e3,
      seconds > 0 ? usage.completion_tokens() / seconds : 0.0);
}

std::string ToJson(const v1::GenerateResponse& answer) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string json;
  CHECK(google::protobuf::util::MessageToJsonString(answer, &json, options).ok());
  return json;
}

std::string LogprobTable(const v1::Choice& choice) {
  std::string table;
  for (const v1::TokenLogprob& token : choice.logprobs()) {
    absl::StrAppendFormat(&table, "%8d %9.4f ", token.token_id(), token.logprob());
    for (const v1::TopLogprob& top : token.top()) {
      absl::StrAppendFormat(&table, " %d:%.4f", top.token_id(), top.logprob());
    }
    table += "\n";
  }
  return table;
}

}  // namespace bough::client
