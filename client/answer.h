// One request's answer as it arrives: events of the stream fold into the message that the unary
// call would have returned.
#pragma once

#include <string>

#include "bough/v1/generation.pb.h"

namespace bough::client {

// Adds one event. Choices appear in index order; texts, token ids and logprobs are concatenated.
void Fold(const v1::GenerateStreamResponse& event, v1::GenerateResponse* answer);

// "group=g0 prompt_tokens=9 cached_tokens=0 completion_tokens=16 shared_blocks=0 ttft_ms=41.2
// tokens_per_s=88.1": durations as the server measured them, tokens per second over the whole
// request.
std::string SummaryLine(const v1::GenerateResponse& answer);

// The answer as one line of JSON; field names as in the proto, zeros included.
std::string ToJson(const v1::GenerateResponse& answer);

// One line per token: id, logprob, then the alternatives as id:logprob.
std::string LogprobTable(const v1::Choice& choice);

}  // namespace bough::client
