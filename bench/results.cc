#include "bench/results.h"

#include <array>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace bough {
namespace {

std::string Commit() {
  std::array<char, 64> line = {};
  FILE* pipe = popen("git describe --always --dirty 2>/dev/null", "r");
  if (pipe == nullptr) return "";
  const bool found = std::fgets(line.data(), line.size(), pipe) != nullptr;
  pclose(pipe);
  return found ? std::string(absl::StripSuffix(line.data(), "\n")) : "";
}

// To 4 significant digits, through text: the nearest double, which JSON prints as short as it is.
double Round4(double x) { return std::stod(absl::StrFormat("%.4g", x)); }

}  // namespace

std::string ToJson(const BenchResults& results) {
  nlohmann::ordered_json json = {
      {"scenario", results.scenario},
      {"device", results.device},
      {"git", Commit()},
      {"date", absl::FormatTime(absl::RFC3339_sec, absl::Now(), absl::UTCTimeZone())}};
  for (const auto& [name, value] : results.ceilings) json["ceilings"][name] = Round4(value);
  for (const BenchCase& c : results.cases) {
    nlohmann::ordered_json entry = {{"name", c.name},
                                    {"value", Round4(c.value)},
                                    {"unit", c.unit},
                                    {"floor", Round4(c.floor)},
                                    {"ratio", Round4(c.value / c.floor)}};
    if (!c.peer.empty()) {
      entry["peer"] = c.peer;
      entry["peer_value"] = Round4(c.peer_value);
    }
    json["cases"].push_back(std::move(entry));
  }
  return json.dump(2) + "\n";
}

std::string CpuName() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(": ") + 2);
  }
  return "unknown CPU";
}

bool WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  file.close();
  if (!file) std::fprintf(stderr, "cannot write %s\n", path.c_str());
  return static_cast<bool>(file);
}

}  // namespace bough
