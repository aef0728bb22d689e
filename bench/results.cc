#include "bench/results.h"

#include <array>
#include <cstdio>
#include <filesystem>
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
      {"git", results.git.empty() ? Commit() : results.git},
      {"date", absl::FormatTime(absl::RFC3339_sec, absl::Now(), absl::UTCTimeZone())}};
  if (!results.command.empty()) json["command"] = results.command;
  for (const auto& [name, value] : results.ceilings) json["ceilings"][name] = Round4(value);
  for (const auto& [name, value] : results.reference_ceilings) {
    json["reference_ceilings"][name] = Round4(value);
  }
  for (const BenchCase& c : results.cases) {
    nlohmann::ordered_json entry = {{"name", c.name}, {"value", Round4(c.value)}, {"unit", c.unit}};
    if (c.floor > 0) {
      entry["floor"] = Round4(c.floor);
      entry["ratio"] = Round4(c.value / c.floor);
    }
    if (!c.peer.empty()) {
      entry["peer"] = c.peer;
      entry["peer_value"] = Round4(c.peer_value);
    }
    if (c.gate) entry["gate"] = Round4(*c.gate);
    for (const auto& [name, value] : c.more) entry[name] = Round4(value);
    json["cases"].push_back(std::move(entry));
  }
  for (const auto& [name, why] : results.skipped) json["skipped"][name] = why;
  return json.dump(2) + "\n";
}

std::string CommandLine(int argc, char** argv) {
  std::string line = std::filesystem::path(argv[0]).filename().string();
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag.rfind("--out=", 0) == 0 || flag.rfind("--git=", 0) == 0) continue;
    line += " " + flag;
  }
  return line;
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
