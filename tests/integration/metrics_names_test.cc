// Dashboards and alerts hang on these names: a change here is a change of the public interface.
#include <fstream>
#include <set>
#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/serving_system.h"

namespace bough::integration {
namespace {

constexpr char kFrozen[] = "tests/metrics_names.txt";

// "role name type" of every family in a scrape but the HTTP library's own, exposer_*.
std::set<std::string> Families(const std::string& role, const std::string& scrape) {
  std::set<std::string> families;
  std::istringstream lines(scrape);
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.starts_with("# TYPE exposer_")) continue;
    if (line.starts_with("# TYPE ")) families.insert(role + " " + line.substr(7));
  }
  return families;
}

// Lines of the frozen list that begin with `role`.
std::set<std::string> Frozen(const std::string& role) {
  std::set<std::string> families;
  std::ifstream file(kFrozen);
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(role + " ")) families.insert(line);
  }
  return families;
}

TEST(MetricsNames, AreTheFrozenOnesOnRouterAndEveryRank) {
  ServingSystem system;
  ASSERT_TRUE(system.Stream(GreedyRequest(Prompt(20, 1), 4)).status.ok());
  EXPECT_FALSE(Frozen("router").empty()) << kFrozen;
  EXPECT_EQ(Families("router", system.ScrapeRouter()), Frozen("router"));
  for (int group = 0; group < ServingSystem::kNumGroups; ++group) {
    EXPECT_EQ(Families("rank0", system.ScrapeRank(group, 0)), Frozen("rank0")) << "g" << group;
    EXPECT_EQ(Families("follower", system.ScrapeRank(group, 1)), Frozen("follower"))
        << "g" << group;
  }
}

}  // namespace
}  // namespace bough::integration
