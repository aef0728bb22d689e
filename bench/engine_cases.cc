#include "bench/engine_cases.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace bough {

absl::StatusOr<CaseSpec> ParseCase(const std::string& name) {
  const absl::Status unknown = absl::InvalidArgumentError(absl::StrCat("--cases: ", name));
  CaseSpec spec = {.name = name};
  const std::vector<std::string> parts = absl::StrSplit(name, '/');
  spec.kind = parts[0];
  for (size_t i = 1; i < parts.size(); ++i) {
    const std::vector<std::string> pair = absl::StrSplit(parts[i], '=');
    if (parts[i] == "ops") {
      spec.ops = true;
      continue;
    }
    int* const value = pair[0] == "ctx" ? &spec.context : &spec.size;
    if (pair.size() != 2 || !absl::SimpleAtoi(pair[1], value) || *value < 1) return unknown;
  }
  if (spec.kind == "mixed" && !spec.ops) return spec;
  const bool is_step = spec.kind == "decode" || spec.kind == "prefill";
  const bool is_shared = spec.kind == "shared" && spec.context > 0 && !spec.ops;
  if (spec.size < 1 || (!is_step && !is_shared)) return unknown;
  return spec;
}

const std::vector<std::string>& UsualCases(bool is_cuda) {
  static const auto* const cpu =
      new std::vector<std::string>{"decode/b=1",     "decode/b=4",          "decode/b=16",
                                   "decode/b=64",    "prefill/t=64",        "prefill/t=512",
                                   "prefill/t=2048", "shared/ctx=512/n=16", "shared/ctx=3072/n=16"};
  static const auto* const cuda = new std::vector<std::string>{
      "decode/b=1",      "decode/b=64",    "decode/b=256",    "prefill/t=1024",    "mixed",
      "decode/b=8",      "decode/b=32",    "decode/b=128",    "decode/b=512",      "prefill/t=4096",
      "prefill/t=16384", "decode/b=1/ops", "decode/b=64/ops", "prefill/t=4096/ops"};
  return is_cuda ? *cuda : *cpu;
}

}  // namespace bough
