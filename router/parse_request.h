// bough.v1 -> Request: the one place where a client's message becomes numbers that are known to be
// good.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "bough/v1/generation.pb.h"
#include "common/grpc_status.h"
#include "common/sampling_params.h"
#include "common/tokenizer.h"
#include "router/request.h"

namespace bough::router {

inline constexpr int kMaxStopStrings = 16;
inline constexpr int kMaxStopStringBytes = 256;
inline constexpr int kMaxRequestIdChars = 128;
inline constexpr int kMaxCacheSaltChars = 128;
inline constexpr int kMaxPriority = 100;

// What parsing needs to know of the deployment.
struct ServedModel {
  std::string name;
  ModelLimits limits;
  int default_max_tokens = 0;
};

// A request that is valid, or why it is not: INVALID_ARGUMENT with every violation that was found,
// or NOT_FOUND for another model. `stream`: it came by GenerateStream. `random` fills an unset
// seed; `fallback_id` an unset request_id. Arrival, deadline and traceparent are the caller's to
// set.
std::variant<std::shared_ptr<Request>, ApiError> ParseRequest(const v1::GenerateRequest& message,
                                                              bool stream, const ServedModel& model,
                                                              const Tokenizer& tokenizer,
                                                              const std::string& fallback_id,
                                                              uint64_t random);

// Token ids of a Tokenize call's prompt.
std::variant<std::vector<int32_t>, ApiError> ParsePrompt(const v1::TokenizeRequest& message,
                                                         const ServedModel& model,
                                                         const Tokenizer& tokenizer);

// The violation of a request id, empty when it is a good one: 1 to 128 printable ASCII characters.
std::vector<FieldViolation> CheckRequestId(const std::string& field, const std::string& id);

}  // namespace bough::router
