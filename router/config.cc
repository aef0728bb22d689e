#include "router/config.h"

#include <filesystem>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "router/prefix_index.h"

namespace bough::router {
namespace {

bool IsHostPort(const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = -1;
  return colon != std::string::npos && colon > 0 &&
         absl::SimpleAtoi(address.substr(colon + 1), &port) && port >= 0 && port <= 65535;
}

}  // namespace

absl::StatusOr<std::vector<GroupAddress>> ParseGroups(absl::string_view text) {
  std::vector<GroupAddress> groups;
  for (absl::string_view item : absl::StrSplit(text, ',', absl::SkipWhitespace())) {
    const std::pair<std::string, std::string> parts = absl::StrSplit(item, absl::MaxSplits('=', 1));
    if (parts.first.empty() || parts.second.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--groups: \"", item, "\" is not name=host:port"));
    }
    groups.push_back({parts.first, parts.second});
  }
  return groups;
}

absl::StatusOr<std::map<std::string, double>> ParseWeights(absl::string_view text) {
  std::map<std::string, double> weights;
  for (absl::string_view item : absl::StrSplit(text, ',', absl::SkipWhitespace())) {
    const std::pair<std::string, std::string> parts = absl::StrSplit(item, absl::MaxSplits('=', 1));
    double weight = 0;
    if (parts.first.empty() || !absl::SimpleAtod(parts.second, &weight)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--tenant-weights: \"", item, "\" is not tenant=weight"));
    }
    weights[parts.first] = weight;
  }
  return weights;
}

absl::Status RouterConfig::Validate() const {
  std::vector<std::string> problems;
  auto expect = [&problems](bool ok, const std::string& problem) {
    if (!ok) problems.push_back(problem);
  };
  auto expect_address = [&](const char* flag, const std::string& value) {
    expect(IsHostPort(value), absl::StrCat(flag, ": must be host:port, is \"", value, "\""));
  };
  auto expect_positive = [&](const char* flag, double value) {
    expect(value > 0, absl::StrCat(flag, ": must be positive, is ", value));
  };
  expect_address("--listen", listen);
  expect_address("--admin-listen", admin_listen);
  if (!metrics_listen.empty()) expect_address("--metrics-listen", metrics_listen);
  expect(!groups.empty() && groups.size() <= kMaxGroups,
         absl::StrCat("--groups: must name 1 to ", kMaxGroups, " groups, names ", groups.size()));
  std::set<std::string> names;
  for (const GroupAddress& group : groups) {
    expect(names.insert(group.name).second,
           absl::StrCat("--groups: the name ", group.name, " is used twice"));
    expect_address("--groups", group.address);
  }
  expect(!model.empty() && std::filesystem::exists(model + "/tokenizer.model"),
         absl::StrCat("--model: there is no ", model, "/tokenizer.model"));
  expect_positive("--default-max-tokens", default_max_tokens);
  expect_positive("--max-requests-in-flight", max_requests_in_flight);
  expect_positive("--admission-hold", absl::ToDoubleSeconds(admission_hold));
  expect_positive("--max-queue-wait", absl::ToDoubleSeconds(max_queue_wait));
  for (const auto& [tenant, weight] : tenant_weights) {
    expect_positive("--tenant-weights", weight);
  }
  expect(tenant_weights.size() <= kMaxNamedTenants,
         absl::StrCat("--tenant-weights: at most ", kMaxNamedTenants, " tenants, names ",
                      tenant_weights.size()));
  expect(max_request_bytes > 0 && max_request_bytes <= (int64_t{1} << 30),
         absl::StrCat("--max-request-bytes: must be in [1, 2^30], is ", max_request_bytes));
  expect_positive("--max-pending-bytes", static_cast<double>(max_pending_bytes));
  expect_positive("--slo-ttft", slo_ttft);
  expect_positive("--slo-itl", slo_itl);
  expect(drain_timeout >= absl::ZeroDuration(),
         absl::StrCat("--drain-timeout: must not be negative, is ",
                      absl::FormatDuration(drain_timeout)));
  expect(
      log_level == "debug" || log_level == "info" || log_level == "warning" || log_level == "error",
      absl::StrCat("--log-level: must be debug, info, warning or error, is \"", log_level, "\""));
  if (problems.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(problems, "\n"));
}

}  // namespace bough::router
