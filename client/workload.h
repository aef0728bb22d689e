// Synthetic requests of given lengths. Same configuration, same requests and arrivals, on any
// machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "bough/v1/generation.pb.h"
#include "bough/v1/model.pb.h"

namespace bough::client {

struct WorkloadConfig {
  // A prompt is one of num_prefixes contexts of prefix_len tokens, chosen at random, then input_len
  // fresh tokens. Both 0: nothing is shared.
  int num_requests = 100;
  int num_prefixes = 0;
  int prefix_len = 0;
  int input_len = 128;
  int output_len = 64;  // exactly: EOS is ignored
  int n = 1;
  float temperature = 1;
  uint64_t seed = 0;
};

// Negative or empty lengths, half a prefix, and requests that `model` would refuse.
absl::Status Validate(const WorkloadConfig& config, const v1::Model& model);

// num_requests requests with token ids as prompts, BOS first. REQUIRES: Validate(config, model) is
// OK.
std::vector<v1::GenerateRequest> MakeRequests(const WorkloadConfig& config, const v1::Model& model);

// Arrival times in seconds from the start, of a Poisson process with `rate` arrivals per second.
// REQUIRES: rate > 0.
std::vector<double> PoissonArrivals(double rate, int count, uint64_t seed);

}  // namespace bough::client
