// bench-engine --scenario=bifurcated: the founding tables (engine_founding.h), measured.
//
// A cell is a batch of `num_samples` decode rows on one context's blocks, run by the ModelRunner as
// the engine runs it: CUDA graph, sampling in it (temperature 0.8, top-p 0.95), tokens that stay on
// the device, the next step launched while one runs. Only the scheduler above it is left out. The
// model prefills the longest context once; shorter ones are its beginning. What the samples have
// written before the measured steps are copies of the context's blocks.
// A cell's value is the median of the steps that see kMeanPrivateTokens own tokens, give or take
// eight, from one result to the next.
#pragma once

#include <string>
#include <vector>

#include "worker/comm/mpi_group.h"
#include "worker/model_runner.h"

namespace bough {

struct BifurcatedBenchOptions {
  ModelRunnerOptions model;
  std::vector<std::string> cells;  // names; empty = all
  std::string out;                 // path of the JSON file; empty: print only
  std::string command, git;        // for the file
};

// The program's exit status. REQUIRES: a group of one rank.
int RunBifurcatedBench(const BifurcatedBenchOptions& options, MpiGroup* group);

}  // namespace bough
