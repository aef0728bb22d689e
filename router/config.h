// What an operator can set. Flags only (--flagfile for files); each flag has its field's name with
// dashes.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace bough::router {

// Each has a label value of its own in the metrics.
inline constexpr size_t kMaxNamedTenants = 64;

struct GroupAddress {
  std::string name;     // unique; the label of metrics and the name in every answer
  std::string address;  // host:port of the group's rank 0
};

struct RouterConfig {
  // Behaviour.
  std::string listen = "0.0.0.0:50051";  // public API; port 0 picks one
  std::string admin_listen =
      "127.0.0.1:50052";  // AdminService: whoever reaches it may cancel and drain
  std::string metrics_listen = "127.0.0.1:9090";  // Prometheus text; empty = none
  std::vector<GroupAddress> groups;               // 1 to 64
  std::string model;                              // folder of which tokenizer.model is read
  std::string served_model_name;  // name that requests give; empty = the folder's name
  int default_max_tokens =
      1024;               // of requests that set no max_tokens; lower it to protect capacity
  double slo_ttft = 1.0;  // s; requests_within_slo_total counts requests that meet both
  double slo_itl = 0.1;   // s, mean of a request
  std::string log_level = "info";  // debug, info, warning, error
  bool help = false;               // --help was given: print FlagsHelp and exit
  // Performance and protection.
  int max_requests_in_flight = 1024;  // beyond it: RESOURCE_EXHAUSTED
  // A request is held here, where tenants share fairly, while the group it should go to has more than
  // this before it: about one prefill chunk, so that no group runs dry.
  absl::Duration admission_hold = absl::Milliseconds(200);
  // Refused at once when it is predicted to wait longer for its prefill; RESOURCE_EXHAUSTED.
  absl::Duration max_queue_wait = absl::Seconds(60);
  std::map<std::string, double> tenant_weights;  // share of each; 1 where not named
  int64_t max_request_bytes = 4 << 20;           // one request message; INVALID_ARGUMENT above
  int64_t max_pending_bytes = 1 << 20;           // unread answer per client; SLOW_CONSUMER above
  absl::Duration drain_timeout = absl::Seconds(300);  // SIGTERM to exit with streams still open

  // One line per problem; OK when there is none.
  absl::Status Validate() const;
};

// "name=host:port,name=host:port".
absl::StatusOr<std::vector<GroupAddress>> ParseGroups(absl::string_view text);

// "tenant=weight,tenant=weight".
absl::StatusOr<std::map<std::string, double>> ParseWeights(absl::string_view text);

// `args` is argv without the program's name. INVALID_ARGUMENT names the flag and its value.
absl::StatusOr<RouterConfig> ParseFlags(const std::vector<std::string>& args);
std::string FlagsHelp();

}  // namespace bough::router
