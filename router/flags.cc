#include "common/flags.h"

#include <filesystem>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "router/config.h"

namespace {
const bough::router::RouterConfig kDefaults;
}  // namespace

ABSL_FLAG(std::string, listen, kDefaults.listen, "host:port of the public API; port 0 picks one");
ABSL_FLAG(std::string, admin_listen, kDefaults.admin_listen, "host:port of AdminService");
ABSL_FLAG(std::string, metrics_listen, kDefaults.metrics_listen,
          "host:port of /metrics; empty = none");
ABSL_FLAG(std::string, groups, "", "worker groups: name=host:port,name=host:port");
ABSL_FLAG(std::string, model, "", "model folder; its tokenizer.model is read");
ABSL_FLAG(std::string, served_model_name, "", "name that requests give; default: the folder's");
ABSL_FLAG(int, default_max_tokens, kDefaults.default_max_tokens,
          "tokens per answer when a request sets no max_tokens");
ABSL_FLAG(int, max_requests_in_flight, kDefaults.max_requests_in_flight,
          "requests at once; more are refused with RESOURCE_EXHAUSTED");
ABSL_FLAG(absl::Duration, admission_hold, kDefaults.admission_hold,
          "requests wait at the router while the group they should go to has more work than this");
ABSL_FLAG(absl::Duration, max_queue_wait, kDefaults.max_queue_wait,
          "requests that are predicted to wait longer are refused with RESOURCE_EXHAUSTED");
ABSL_FLAG(std::string, tenant_weights, "",
          "shares under load, by the metadata key x-tenant: tenant=weight,...; others have 1");
ABSL_FLAG(int64_t, max_request_bytes, kDefaults.max_request_bytes, "largest request message");
ABSL_FLAG(int64_t, max_pending_bytes, kDefaults.max_pending_bytes,
          "answer bytes that a slow client may leave unread before its request is ended");
ABSL_FLAG(absl::Duration, drain_timeout, kDefaults.drain_timeout,
          "how long open streams may go on after SIGTERM");
ABSL_FLAG(std::string, log_level, kDefaults.log_level, "debug, info, warning or error");
ABSL_FLAG(double, slo_ttft, kDefaults.slo_ttft, "seconds to the first token that count as good");
ABSL_FLAG(double, slo_itl, kDefaults.slo_itl, "mean seconds between tokens that count as good");

namespace bough::router {
namespace {

constexpr char kThisFile[] = "router/flags.cc";

}  // namespace

std::string FlagsHelp() {
  return bough::FlagsHelp(
      "Sends each request to the worker group that holds its prompt's KV.\n"
      "  bough-router --model=models/demo --groups=a=127.0.0.1:50061,b=127.0.0.1:50062",
      kThisFile);
}

absl::StatusOr<RouterConfig> ParseFlags(const std::vector<std::string>& args) {
  ASSIGN_OR_RETURN(const CommandLine line, bough::ParseFlags(args, kThisFile));
  if (!line.positional.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", line.positional[0], "': no positional arguments are taken; see --help"));
  }
  RouterConfig c;
  c.help = line.help;
  c.listen = absl::GetFlag(FLAGS_listen);
  c.admin_listen = absl::GetFlag(FLAGS_admin_listen);
  c.metrics_listen = absl::GetFlag(FLAGS_metrics_listen);
  ASSIGN_OR_RETURN(c.groups, ParseGroups(absl::GetFlag(FLAGS_groups)));
  c.model = absl::GetFlag(FLAGS_model);
  while (c.model.size() > 1 && c.model.back() == '/') c.model.pop_back();
  c.served_model_name = absl::GetFlag(FLAGS_served_model_name);
  if (c.served_model_name.empty()) {
    c.served_model_name = std::filesystem::path(c.model).filename().string();
  }
  c.default_max_tokens = absl::GetFlag(FLAGS_default_max_tokens);
  c.max_requests_in_flight = absl::GetFlag(FLAGS_max_requests_in_flight);
  c.admission_hold = absl::GetFlag(FLAGS_admission_hold);
  c.max_queue_wait = absl::GetFlag(FLAGS_max_queue_wait);
  ASSIGN_OR_RETURN(c.tenant_weights, ParseWeights(absl::GetFlag(FLAGS_tenant_weights)));
  c.max_request_bytes = absl::GetFlag(FLAGS_max_request_bytes);
  c.max_pending_bytes = absl::GetFlag(FLAGS_max_pending_bytes);
  c.drain_timeout = absl::GetFlag(FLAGS_drain_timeout);
  c.log_level = absl::GetFlag(FLAGS_log_level);
  c.slo_ttft = absl::GetFlag(FLAGS_slo_ttft);
  c.slo_itl = absl::GetFlag(FLAGS_slo_itl);
  return c;
}

}  // namespace bough::router
