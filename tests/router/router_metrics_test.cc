#include "router/router_metrics.h"

#include <fstream>
#include <set>
#include <sstream>
#include <string>

#include "gtest/gtest.h"

namespace bough::router {
namespace {

// "name type" of every family with a series.
std::set<std::string> Families(const std::string& exposition) {
  std::set<std::string> families;
  std::istringstream lines(exposition);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("# TYPE ", 0) == 0) families.insert(line.substr(7));
  }
  return families;
}

// Dashboards and alerts depend on these: adding one is fine, renaming or removing one is not.
TEST(RouterMetrics, NamesAndTypesAreThoseOfTheFrozenList) {
  std::set<std::string> frozen;
  std::ifstream file("tests/metrics_names.txt");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("router ", 0) == 0) frozen.insert(line.substr(7));
  }
  Metrics registry;
  const RouterMetrics metrics(&registry, {{"a", "x:1"}});
  EXPECT_EQ(Families(registry.Text()), frozen);
}

TEST(RouterMetrics, AnUnknownLabelValueIsCountedNotMinted) {
  Metrics registry;
  RouterMetrics metrics(&registry, {{"a", "x:1"}});
  metrics.CountRejected("SOMETHING_NEW");
  metrics.CountCall(absl::StatusCode::kDataLoss, 1);
  const std::string text = registry.Text();
  EXPECT_NE(text.find("bough_rejected_total{reason=\"OTHER\"} 1"), std::string::npos);
  EXPECT_NE(text.find("bough_requests_total{code=\"UNKNOWN\"} 1"), std::string::npos);
  EXPECT_EQ(text.find("SOMETHING_NEW"), std::string::npos);
}

}  // namespace
}  // namespace bough::router
