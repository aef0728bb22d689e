// The cases that bench-engine knows, by name.
//
//   decode/b=N          one step of N sequences which share nothing, --context tokens each
//   prefill/t=N         submit to first token of a prompt of N, nothing cached
//   mixed               requests/s of 1024 tokens in, 50 out, 192 always under way
//   shared/ctx=C/n=N    one step of N samples of one prompt of C, bifurcated and, as its peer, with
//                       plain attention
//   CASE/ops            where a step of a decode or prefill case spends its time, op by op, measured
//                       apart with a time stamp behind each op (worker/model/op_times.h)
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace bough {

struct CaseSpec {
  std::string name;
  std::string kind = "";  // up to the first slash
  int size = 0;           // b, t or n
  int context = 0;        // ctx
  bool ops = false;
};

// INVALID_ARGUMENT repeats the name.
absl::StatusOr<CaseSpec> ParseCase(const std::string& name);

// What a full run measures; the GPU's begin with those that have a limit to keep.
const std::vector<std::string>& UsualCases(bool is_cuda);

}  // namespace bough
