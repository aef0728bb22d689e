// The main of tests that run on several ranks: rank 0 runs the tests, the others do what it tells
// them.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "worker/comm/mpi_group.h"

namespace bough::testing {

// The group of this process, as made by RunParallelTests.
MpiGroup* Group();

// Rank 0: makes every other rank run `follow` with these words.
void StartFollowers(const std::string& words);

// Returns main's exit code. `follow(words)` runs on the other ranks, once per StartFollowers.
int RunParallelTests(int argc, char** argv, const std::function<void(const std::string&)>& follow);

}  // namespace bough::testing
