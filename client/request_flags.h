// The flags that describe one request, with vLLM's names. A flag that is not given leaves its field
// unset, so that the server's default holds. Values are checked by the server, not here.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "bough/v1/generation.pb.h"
#include "client/flags.h"
#include "client/io.h"

namespace bough::client {

// --n, --temperature, --stop, ... write into *request. REQUIRES: it outlives flags.Parse.
void AddSamplingFlags(FlagSet& flags, v1::GenerateRequest* request);

// Where the prompt comes from: one positional argument, --prompt-file, --token-ids, or stdin ("-",
// or nothing when stdin is not a terminal). Of file and stdin one final newline is dropped.
struct PromptFlags {
  std::string prompt_file;
  std::vector<int32_t> token_ids;
  bool has_token_ids = false;

  void AddFlags(FlagSet& flags);
  // INVALID_ARGUMENT when there is none or more than one; NOT_FOUND when the file cannot be read.
  absl::Status Resolve(const std::vector<std::string>& positional, Io& io,
                       v1::GenerateRequest* request) const;
};

// "1,2,3" -> appended to *ids.
absl::Status ParseIds(std::string_view text, std::vector<int32_t>* ids);

}  // namespace bough::client
