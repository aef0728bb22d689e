// Sends many requests and times them. Streams run on gRPC's callback threads: hundreds of
// concurrent streams need no threads of their own.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "bough/v1/generation.grpc.pb.h"
#include "client/io.h"
#include "client/request_record.h"
#include "grpcpp/channel.h"

namespace bough::client {

struct LoadConfig {
  // Closed loop: this many requests in flight. Open loop: at most this many, 0 = no bound.
  int concurrency = 16;
  // Open loop: when each request is due, seconds from the start. Empty = closed loop.
  std::vector<double> arrivals;
  // Deadline of each request.
  absl::Duration timeout = absl::Seconds(120);
};

struct LoadProgress {
  int finished = 0, failed = 0, in_flight = 0, total = 0;
  int64_t output_tokens = 0;  // of finished requests
  double seconds = 0;         // since the start
};

struct LoadResult {
  std::vector<RequestRecord> records;  // in the order in which they ended
  double seconds = 0;                  // first request sent to last stream ended
};

// Blocks until all have ended. `on_progress` runs on the calling thread, ten times a second and
// once at the end. An interrupt cancels what is in flight and sends nothing more.
LoadResult RunLoad(const std::shared_ptr<grpc::Channel>& channel,
                   const std::vector<v1::GenerateRequest>& requests, const LoadConfig& config,
                   const std::function<void(const LoadProgress&)>& on_progress,
                   Interrupt& interrupt);

}  // namespace bough::client
