// Command lines: abseil flags, spelled with dashes or underscores as vLLM's are, and errors as
// values instead of an exit, because a group's ranks must say a mistake once.
//
//   --name=value   --name value   --bool   --nobool   --flagfile=path (one flag a line, # comments)
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace bough {

struct CommandLine {
  bool help = false;                    // --help was given
  std::vector<std::string> positional;  // what is no flag, in order; all that follows "--"
};

// Sets the flags that ABSL_FLAG defines in the source file whose path ends in `defined_in`; no
// others exist. INVALID_ARGUMENT names the flag and its value. `args` is argv without the program's
// name.
absl::StatusOr<CommandLine> ParseFlags(const std::vector<std::string>& args,
                                       std::string_view defined_in);

// `usage`, then every flag with its meaning and default, by name.
std::string FlagsHelp(std::string_view usage, std::string_view defined_in);

}  // namespace bough
