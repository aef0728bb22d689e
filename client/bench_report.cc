#include "client/bench_report.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "client/connection.h"
#include "client/format.h"

namespace bough::client {
namespace {

constexpr double kMs = 1e3;

void AddMillis(const std::vector<double>& seconds, std::vector<double>* out) {
  for (double s : seconds) out->push_back(s * kMs);
}

void AddDistribution(const std::string& name, const Distribution& d, nlohmann::json* json) {
  const std::string suffix = "_" + name + "_ms";
  (*json)["mean" + suffix] = d.mean;
  (*json)["median" + suffix] = d.p50;
  (*json)["std" + suffix] = d.std;
  (*json)["p50" + suffix] = d.p50;
  (*json)["p90" + suffix] = d.p90;
  (*json)["p99" + suffix] = d.p99;
}

nlohmann::json Case(const std::string& name, double value, const std::string& unit,
                    const std::map<std::string, double>& floors) {
  nlohmann::json json = {
      {"name", name}, {"value", value}, {"unit", unit}, {"floor", nullptr}, {"ratio", nullptr}};
  const auto floor = floors.find(name);
  if (floor != floors.end()) {
    json["floor"] = floor->second;
    json["ratio"] = value / floor->second;
  }
  return json;
}

nlohmann::json Cases(const BenchFigures& f, const std::map<std::string, double>& floors) {
  nlohmann::json cases = nlohmann::json::array();
  cases.push_back(Case("request_throughput", f.request_throughput, "requests/s", floors));
  cases.push_back(Case("output_throughput", f.output_throughput, "tokens/s", floors));
  cases.push_back(Case("total_token_throughput", f.total_token_throughput, "tokens/s", floors));
  cases.push_back(Case("cached_token_ratio", f.cached_ratio(), "1", floors));
  const std::pair<const char*, const Distribution&> distributions[] = {
      {"ttft", f.ttft}, {"tpot", f.tpot}, {"itl", f.itl}, {"e2e", f.e2e}};
  for (const auto& [name, d] : distributions) {
    const std::string base = name;
    cases.push_back(Case(base + "_mean", d.mean, "ms", floors));
    cases.push_back(Case(base + "_p50", d.p50, "ms", floors));
    cases.push_back(Case(base + "_p90", d.p90, "ms", floors));
    cases.push_back(Case(base + "_p99", d.p99, "ms", floors));
  }
  return cases;
}

}  // namespace

BenchFigures Summarize(const LoadResult& result) {
  BenchFigures f;
  f.seconds = result.seconds;
  std::vector<double> ttft, tpot, itl, e2e;
  for (const RequestRecord& record : result.records) {
    if (!record.ok()) {
      ++f.failed;
      ++f.errors[CodeName(record.code)];
      continue;
    }
    ++f.completed;
    f.input_tokens += record.prompt_tokens;
    f.cached_tokens += record.cached_tokens;
    f.output_tokens += record.output_tokens;
    ttft.push_back(record.ttft * kMs);
    e2e.push_back(record.e2e * kMs);
    AddMillis(record.itl, &itl);
    AddMillis(record.tpot, &tpot);
  }
  f.ttft = Describe(std::move(ttft));
  f.tpot = Describe(std::move(tpot));
  f.itl = Describe(std::move(itl));
  f.e2e = Describe(std::move(e2e));
  if (f.seconds > 0) {
    f.request_throughput = f.completed / f.seconds;
    f.output_throughput = static_cast<double>(f.output_tokens) / f.seconds;
    f.total_token_throughput = static_cast<double>(f.input_tokens + f.output_tokens) / f.seconds;
  }
  return f;
}

std::string BenchTable(const BenchFigures& f) {
  std::string out = absl::StrFormat(
      "requests    %d ok, %d failed in %.2f s\n"
      "throughput  %.2f requests/s, %.1f output tokens/s, %.1f tokens/s in all\n"
      "tokens      %d in (%.1f%% cached), %d out\n",
      f.completed, f.failed, f.seconds, f.request_throughput, f.output_throughput,
      f.total_token_throughput, f.input_tokens, f.cached_ratio() * 100, f.output_tokens);
  absl::StrAppendFormat(&out, "%-8s %10s %10s %10s %10s\n", "ms", "mean", "p50", "p90", "p99");
  const auto row = [&out](const char* name, const Distribution& d) {
    absl::StrAppendFormat(&out, "%-8s %10.2f %10.2f %10.2f %10.2f\n", name, d.mean, d.p50, d.p90,
                          d.p99);
  };
  row("ttft", f.ttft);
  row("tpot", f.tpot);
  row("itl", f.itl);
  row("e2e", f.e2e);
  for (const auto& [code, count] : f.errors) {
    absl::StrAppendFormat(&out, "errors      %d %s\n", count, code);
  }
  return out;
}

nlohmann::json BenchJson(const BenchFigures& f, const BenchContext& context) {
  nlohmann::json json = {
      {"date", context.date},
      {"backend", "bough"},
      {"model_id", context.model},
      {"num_prompts", context.workload.num_requests},
      {"request_rate", context.request_rate > 0 ? nlohmann::json(context.request_rate) : "inf"},
      {"max_concurrency", context.concurrency > 0 ? nlohmann::json(context.concurrency) : nullptr},
      {"duration", f.seconds},
      {"completed", f.completed},
      {"failed", f.failed},
      {"total_input_tokens", f.input_tokens},
      {"total_output_tokens", f.output_tokens},
      {"total_cached_tokens", f.cached_tokens},
      {"cached_token_ratio", f.cached_ratio()},
      {"request_throughput", f.request_throughput},
      {"output_throughput", f.output_throughput},
      {"total_token_throughput", f.total_token_throughput},
      {"errors", f.errors},
      {"num_prefixes", context.workload.num_prefixes},
      {"prefix_len", context.workload.prefix_len},
      {"input_len", context.workload.input_len},
      {"output_len", context.workload.output_len},
      {"n", context.workload.n},
      {"seed", context.workload.seed}};
  AddDistribution("ttft", f.ttft, &json);
  AddDistribution("tpot", f.tpot, &json);
  AddDistribution("itl", f.itl, &json);
  AddDistribution("e2el", f.e2e, &json);
  if (!context.scenario.empty()) {
    json["scenario"] = context.scenario;
    json["device"] = context.device;
    json["git"] = context.git;
    json["ceilings"] = context.ceilings;
    json["cases"] = Cases(f, context.floors);
  }
  return json;
}

std::string BenchProgressLine(const LoadProgress& p) {
  const double fraction = p.total == 0 ? 1 : static_cast<double>(p.finished) / p.total;
  const double seconds = std::max(p.seconds, 1e-9);
  std::string line = absl::StrFormat("%s %d/%d  %.1f req/s  %.0f tok/s  %d in flight",
                                     Bar(fraction, 24), p.finished, p.total, p.finished / seconds,
                                     static_cast<double>(p.output_tokens) / seconds, p.in_flight);
  if (p.failed > 0) absl::StrAppendFormat(&line, "  %d failed", p.failed);
  if (p.finished > 0 && p.finished < p.total) {
    absl::StrAppendFormat(&line, "  eta %s",
                          FormatSeconds(seconds / p.finished * (p.total - p.finished)));
  }
  return line;
}

}  // namespace bough::client
