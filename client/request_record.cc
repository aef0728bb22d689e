#include "client/request_record.h"

namespace bough::client {

void RequestTimer::Observe(const v1::GenerateStreamResponse& event, double now) {
  if (event.has_delta() && event.delta().token_ids_size() > 0) {
    const v1::StreamDelta& delta = event.delta();
    if (record_.output_tokens == 0) record_.ttft = now - sent_;
    record_.output_tokens += delta.token_ids_size();
    const size_t index = static_cast<size_t>(delta.index());
    if (choices_.size() <= index) choices_.resize(index + 1);
    ChoiceTimes& choice = choices_[index];
    if (choice.tokens == 0) {
      choice.first = now;
    } else {
      record_.itl.push_back(now - choice.last);
    }
    choice.last = now;
    choice.tokens += delta.token_ids_size();
  } else if (event.has_start()) {
    record_.prompt_tokens = event.start().prompt_tokens();
  } else if (event.has_end()) {
    const v1::Usage& usage = event.end().usage();
    record_.prompt_tokens = usage.prompt_tokens();
    record_.cached_tokens = usage.cached_prompt_tokens();
    record_.output_tokens = usage.completion_tokens();
  }
}

RequestRecord RequestTimer::Finish(grpc::StatusCode code, double now) {
  record_.code = code;
  record_.e2e = now - sent_;
  for (const ChoiceTimes& choice : choices_) {
    if (choice.tokens > 1) {
      record_.tpot.push_back((choice.last - choice.first) / (choice.tokens - 1));
    }
  }
  return std::move(record_);
}

}  // namespace bough::client
