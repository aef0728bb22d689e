// What the engine refuses, though the router should have: the worker trusts nobody.
#pragma once

#include <string>
#include <vector>

#include "common/sampling_params.h"
#include "worker/request.h"

namespace bough {

// ValidateRequest, the choices, and whether each choice fits `num_blocks` KV blocks when it has
// them all. Empty = accepted.
std::vector<FieldViolation> CheckRequest(const Request& request, const ModelLimits& limits,
                                         int num_blocks);

// "prompt: must have at least 1 token, has 0; sampling.n: ..."
std::string JoinViolations(const std::vector<FieldViolation>& violations);

}  // namespace bough
