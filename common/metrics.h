// Prometheus text on http://<address>/metrics. A thin layer over prometheus-cpp: one registry a process,
// families made once at start, handles kept by their users. Names are frozen by tests/metrics_names.txt.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace bough {

// Thread-safe. Handles live as long as the object.
class Metrics {
 public:
  using Labels = std::map<std::string, std::string>;

  Metrics();
  ~Metrics();

  // "bough_" is put in front of every name. The same (name, labels) gives the same handle.
  prometheus::Counter& Counter(const std::string& name, const std::string& help,
                               const Labels& labels = {});
  prometheus::Gauge& Gauge(const std::string& name, const std::string& help,
                           const Labels& labels = {});
  // Buckets in seconds (or tokens): upper bounds, ascending.
  prometheus::Histogram& Histogram(const std::string& name, const std::string& help,
                                   const std::vector<double>& buckets, const Labels& labels = {});

  // Serves /metrics from now on. `address` is host:port; port 0 picks one. Returns the port.
  absl::StatusOr<int> Serve(const std::string& address);

  // The exposition text, as a scrape would see it.
  std::string Text() const;

  // Latency bounds from 1 ms to 60 s, used by every *_seconds family.
  static const std::vector<double>& SecondsBuckets();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bough
