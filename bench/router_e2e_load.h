// Clients of bench-router-e2e: requests at a given rate, whatever happens to those before them, or as many
// as keep a number of them in flight.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace bough {

struct E2eLoad {
  double rate = 0;    // requests/s, Poisson; 0 = closed loop
  int in_flight = 0;  // of the closed loop
  double warm_up_seconds = 0, seconds = 0;
  // Half of a prompt is common to all requests, the rest is its own.
  int prompt_tokens = 0;
};

struct E2eResult {
  std::vector<double> seconds;  // of each request that was measured, ascending
  int64_t num_failed = 0;
  std::string first_error;
  double requests_per_s = 0;
};

// A share of them took no longer than this. REQUIRES: some were measured.
double Percentile(const E2eResult& result, double percent);

// By the public API: from the call to its answer (unary) or to its first token (stream).
E2eResult LoadRouter(int port, bool stream, const E2eLoad& load);
// By the link itself, as a router would use it: from the Submit to the first token.
E2eResult LoadGroup(int port, const E2eLoad& load);

// Returns once a request is answered with OK. Dies after 30 s.
void AwaitServing(int port);

}  // namespace bough
