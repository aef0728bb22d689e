// What one request of a bench looked like from the client.
#pragma once

#include <vector>

#include "bough/v1/generation.pb.h"
#include "grpcpp/support/status.h"

namespace bough::client {

// Durations in seconds.
struct RequestRecord {
  grpc::StatusCode code = grpc::StatusCode::UNKNOWN;
  double ttft = 0;           // sent to first token
  double e2e = 0;            // sent to end of stream
  std::vector<double> itl;   // gaps between consecutive deltas of a choice
  std::vector<double> tpot;  // per choice of 2 tokens or more: (last - first token) / (tokens - 1)
  int prompt_tokens = 0;
  int cached_tokens = 0;
  int output_tokens = 0;

  bool ok() const { return code == grpc::StatusCode::OK; }
};

// Times one stream. Not thread-safe; `now` is in seconds on any monotonic clock.
class RequestTimer {
 public:
  explicit RequestTimer(double now) : sent_(now) {}
  void Observe(const v1::GenerateStreamResponse& event, double now);
  RequestRecord Finish(grpc::StatusCode code, double now);

 private:
  struct ChoiceTimes {
    double first = 0, last = 0;
    int tokens = 0;
  };
  const double sent_;
  std::vector<ChoiceTimes> choices_;
  RequestRecord record_;
};

}  // namespace bough::client
