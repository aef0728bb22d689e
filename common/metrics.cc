#include "common/metrics.h"

#include <exception>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "prometheus/exposer.h"
#include "prometheus/text_serializer.h"

namespace bough {
namespace {

std::string FullName(const std::string& name) { return "bough_" + name; }

// The HTTP server takes lists of ports and suffixes such as "s" for TLS; bough takes host:port
// only.
absl::Status CheckAddress(const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || colon == 0 ||
      address.find_first_of(", +") != std::string::npos ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 0 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat(
        "metrics address must be host:port with a port in [0, 65535], is \"", address, "\""));
  }
  return absl::OkStatus();
}

}  // namespace

struct Metrics::Impl {
  std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
  std::unique_ptr<prometheus::Exposer> exposer;
};

Metrics::Metrics() : impl_(std::make_unique<Impl>()) {}
Metrics::~Metrics() = default;

prometheus::Counter& Metrics::Counter(const std::string& name, const std::string& help,
                                      const Labels& labels) {
  return prometheus::BuildCounter()
      .Name(FullName(name))
      .Help(help)
      .Register(*impl_->registry)
      .Add(labels);
}

prometheus::Gauge& Metrics::Gauge(const std::string& name, const std::string& help,
                                  const Labels& labels) {
  return prometheus::BuildGauge()
      .Name(FullName(name))
      .Help(help)
      .Register(*impl_->registry)
      .Add(labels);
}

prometheus::Histogram& Metrics::Histogram(const std::string& name, const std::string& help,
                                          const std::vector<double>& buckets,
                                          const Labels& labels) {
  return prometheus::BuildHistogram()
      .Name(FullName(name))
      .Help(help)
      .Register(*impl_->registry)
      .Add(labels, buckets);
}

absl::StatusOr<int> Metrics::Serve(const std::string& address) {
  CHECK(impl_->exposer == nullptr) << "already serving";
  if (absl::Status status = CheckAddress(address); !status.ok()) return status;
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(address, /*num_threads=*/2);
    exposer->RegisterCollectable(impl_->registry, "/metrics");
    impl_->exposer = std::move(exposer);
    return impl_->exposer->GetListeningPorts().at(0);
  } catch (const std::exception& e) {
    return absl::UnavailableError(
        absl::StrCat("cannot serve metrics on ", address, ": ", e.what()));
  }
}

std::string Metrics::Text() const {
  return prometheus::TextSerializer().Serialize(impl_->registry->Collect());
}

const std::vector<double>& Metrics::SecondsBuckets() {
  static const auto& buckets = *new std::vector<double>{
      0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60};
  return buckets;
}

}  // namespace bough
