// A placement decision as a table.
#pragma once

#include <string>
#include <vector>

#include "bough/v1/generation.pb.h"

namespace bough::client {

// One row per group: matched tokens, each term of its cost and the total in ms, cheapest first; '*' marks the
// chosen one, '-' those that accept nothing now, and why.
std::string RouteTable(std::vector<v1::RouteCandidate> candidates);

}  // namespace bough::client
