// The one format of bench/results/<device>/<scenario>.json.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace bough {

// `floor` is the physical limit of `value` from bytes and FLOPs over the ceilings, in the same unit (of
// a rate: what it cannot exceed); ratio = value / floor is written beside them.
struct BenchCase {
  std::string name;
  double value = 0;
  std::string unit;
  double floor = 0;  // 0 = none is known
  // Another way to the same result, in the same unit and measured in the same run unless its name says
  // otherwise; "" = none.
  std::string peer = {};
  double peer_value = 0;
  std::optional<double> gate = {};  // what the value must not pass, where that was fixed beforehand
  std::vector<std::pair<std::string, double>> more = {};  // further figures; unit in the name
};

struct BenchResults {
  std::string scenario;
  std::string device;
  std::string command;  // line that gives this file again
  std::string git;      // "" = asked of git, where the working directory is a checkout
  std::map<std::string, double> ceilings;  // measured by the same program; unit in the name
  std::map<std::string, double> reference_ceilings;  // measured before, on the same kind of device
  std::vector<BenchCase> cases;
  std::map<std::string, std::string> skipped;  // case -> why
};

// As JSON, with the date.
std::string ToJson(const BenchResults& results);

// The command line, without the folder that the program lies in, --out and --git: those say where a
// run took place, not what it measured.
std::string CommandLine(int argc, char** argv);

// Model name of the machine's CPU.
std::string CpuName();

// Prints one line to stderr and returns false if the file cannot be written.
bool WriteFile(const std::string& path, const std::string& text);

}  // namespace bough
