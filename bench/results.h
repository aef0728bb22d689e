// The one format of bench/results/<device>/<scenario>.json.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace bough {

// `floor` is the physical limit of `value` from bytes and FLOPs over the measured ceilings, in the
// same unit; ratio = value / floor is written beside them.
struct BenchCase {
  std::string name;
  double value = 0;
  std::string unit;
  double floor = 0;
  // Another way to the same result, measured in the same run and unit; "" = none.
  std::string peer = {};
  double peer_value = 0;
};

struct BenchResults {
  std::string scenario;
  std::string device;
  std::map<std::string, double> ceilings;  // measured by the same program; unit in the name
  std::vector<BenchCase> cases;
};

// As JSON, with the date and, where the working directory is a checkout, its commit.
std::string ToJson(const BenchResults& results);

// Model name of the machine's CPU.
std::string CpuName();

// Prints one line to stderr and returns false if the file cannot be written.
bool WriteFile(const std::string& path, const std::string& text);

}  // namespace bough
