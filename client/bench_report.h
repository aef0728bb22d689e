// The figures of one bench run, as a table and as JSON.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "client/load.h"
#include "client/statistics.h"
#include "client/workload.h"
#include "nlohmann/json.hpp"

namespace bough::client {

// Distributions in milliseconds, over the requests that ended well.
struct BenchFigures {
  int completed = 0, failed = 0;
  double seconds = 0;
  int64_t input_tokens = 0, cached_tokens = 0, output_tokens = 0;
  double request_throughput = 0;      // completed requests / s
  double output_throughput = 0;       // output tokens / s
  double total_token_throughput = 0;  // input and output tokens / s
  Distribution ttft, tpot, itl, e2e;
  std::map<std::string, int> errors;  // by code name

  double cached_ratio() const {
    return input_tokens == 0 ? 0 : static_cast<double>(cached_tokens) / input_tokens;
  }
};

BenchFigures Summarize(const LoadResult& result);

// For people.
std::string BenchTable(const BenchFigures& figures);

// What was measured where.
struct BenchContext {
  std::string model, device, git, date;
  WorkloadConfig workload;
  int concurrency = 0;
  double request_rate = 0;                 // 0 = closed loop
  std::string scenario;                    // empty = none
  std::map<std::string, double> ceilings;  // measured limits of the machine, by name
  std::map<std::string, double> floors;    // the physical limit of a case, by the case's name
};

// An object with the key names of vLLM's serving benchmark (mean_ttft_ms, request_throughput, ...);
// with a scenario also {"scenario","device","git","date","ceilings","cases"} of the project's
// results.
nlohmann::json BenchJson(const BenchFigures& figures, const BenchContext& context);

// "[####......] 120/300  8.1 req/s  512 tok/s  16 in flight  eta 22s".
std::string BenchProgressLine(const LoadProgress& progress);

}  // namespace bough::client
